"""Optimizer steps through ``torch.compile``, with a fallback to the plain network."""

from collections.abc import Callable
from textwrap import shorten
from typing import TypeVar, cast

import torch
from torch import nn

from uumamba.runtime.errors import UumambaError
from uumamba.training.snapshot import Snapshot

T = TypeVar("T")
LONGEST_PROBLEM = 200  # a compiler's message can have pages


class CompiledStep:
    """The compiled network and the steps through it, until one of them fails.

    Compiling starts with the first call and again with another shape, so it may fail inside any step; the step is then
    repeated with the plain network, whose own errors are raised. The plain network itself is unchanged: its state keeps
    its names.

    Args:
        net: the network.
        enabled: compile it.
        say: called once, with a sentence, if it does not compile.
    """

    def __init__(self, net: nn.Module, *, enabled: bool, say: Callable[[str], None]) -> None:
        self._plain = net
        self._say = say
        self.net = cast(nn.Module, torch.compile(net)) if enabled else net

    def attempt(self, step: Callable[[], T], *, snapshot: Callable[[], Snapshot]) -> T:
        """Return the step's result, repeated from its start without the compiler if it fails.

        Args:
            step: one step of the optimizer.
            snapshot: stores what a step changes before the weights move.
        """
        if self.net is self._plain:
            return step()
        before = snapshot()
        try:
            return step()
        except (torch.OutOfMemoryError, UumambaError):
            raise  # not the compiler's; after an error of ours some weights may have moved
        except Exception as error:  # noqa: BLE001 compilers raise anything; a fault of the step itself is raised again
            self.net = self._plain
            before.restore()
            result = step()  # raises again if compiling was not the fault
            problem = shorten(f"{type(error).__name__}: {error}", width=LONGEST_PROBLEM, placeholder=" ...")
            self._say(f"torch.compile failed ({problem}); training goes on without it.")
            return result
