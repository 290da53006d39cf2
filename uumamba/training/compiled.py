"""A network behind ``torch.compile``, for as long as that works."""

from collections.abc import Callable
from textwrap import shorten
from typing import TypeVar, cast

import torch
from torch import nn

from uumamba.runtime.errors import UumambaError
from uumamba.training.step_start import StepStart

T = TypeVar("T")
LONGEST_PROBLEM = 200  # a compiler's message can have pages


class MayCompile:
    """Holds the network to call in a step: the compiled one, until a step with it fails.

    Compiling begins with the first call, and again with another shape, so it may fail in the midst of any step; the
    step is then repeated with the network as it is, whose own errors come through. The network itself stays as it was
    made: its state has the names that it always has.

    Args:
        net: the network.
        enabled: compile it at all.
        say: told once, in a sentence, that it does not compile.
    """

    def __init__(self, net: nn.Module, *, enabled: bool, say: Callable[[str], None]) -> None:
        self._net = net
        self._say = say
        self.net = cast(nn.Module, torch.compile(net)) if enabled else net

    def attempt(self, step: Callable[[], T], *, start: Callable[[], StepStart]) -> T:
        """The step's result, with the compiled network or else without, from the same start.

        Args:
            step: one step of the optimizer.
            start: what a step changes before the weights move, as it is.
        """
        if self.net is self._net:
            return step()
        before = start()
        try:
            return step()
        except (torch.OutOfMemoryError, UumambaError):
            raise  # neither is a compiler's; one of ours may say that some weights have moved
        except Exception as error:  # noqa: BLE001 compilers raise whatever they like; a fault of the step is raised again
            self.net = self._net
            before.restore()
            result = step()  # which raises again where compiling was not the fault
            problem = shorten(f"{type(error).__name__}: {error}", width=LONGEST_PROBLEM, placeholder=" ...")
            self._say(f"torch.compile failed ({problem}); training goes on without it.")
            return result
