"""Optimizer steps through ``torch.compile``, with a fallback to the plain network."""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from uumamba.runtime.errors import UumambaError
from uumamba.runtime.memory_shortage import summarize_error
from uumamba.training.snapshot import Snapshot


class CompiledStep:
    """Compiled network, replaced by the plain one after a failed step.

    Compiling starts with the first call and again with another shape, so it may fail inside any step. That step is
    repeated with the plain network, whose own errors are raised. The plain network is unchanged and its state keeps its
    names.

    Args:
        net: the network.
        enabled: compile the network.
        say: called once, with a sentence, if compiling fails.
    """

    def __init__(self, net: nn.Module, *, enabled: bool, say: Callable[[str], None]) -> None:
        self._plain = net
        self._say = say
        self.net = cast(nn.Module, torch.compile(net)) if enabled else net

    def attempt(self, step: Callable[[], Tensor], *, snapshot: Callable[[], Snapshot]) -> Tensor:
        """Take a step, and repeat a failed one without the compiler.

        Args:
            step: one step of the optimizer.
            snapshot: stores the state that a step changes before the weights.
        """
        if self.net is self._plain:
            return step()
        before = snapshot()
        try:
            return step()
        except (torch.OutOfMemoryError, UumambaError):
            raise  # no fault of the compiler, and some weights may have changed
        except Exception as error:  # noqa: BLE001 compilers raise anything; a fault of the step itself is raised again
            self.net = self._plain
            before.restore()
            result = step()  # raises again if compiling was not the cause
            self._say(
                f"torch.compile failed ({type(error).__name__}: {summarize_error(error)}); training continues without "
                "compiling."
            )
            return result
