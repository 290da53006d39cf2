"""Snapshot of what a step changes before the weights move, to repeat a step that failed."""

from collections.abc import Sequence

import torch
from torch import Tensor

from uumamba.optim import SharpnessAware
from uumamba.training.method_step import MethodStep


class Snapshot:
    """Running statistics, the memory of optimizer and method, and torch's random state at the start of a step.

    The engine restores the weights itself when a pass raises. Per-parameter memory of a rule is kept by reference, not
    copied: the rules replace such tensors before the weight update, and change them in place only in it.

    Args:
        statistics: the network's running statistics, which are copied; most of our networks have none.
        optimizer: of the family.
        device: its random state is kept beside the CPU's.
        method: its state is copied.

    Example:
        >>> from functools import partial
        >>> from uumamba.optim.restore import running_statistics
        >>> net = torch.nn.BatchNorm1d(1)
        >>> optimizer = SharpnessAware(net.parameters(), partial(torch.optim.SGD, lr=0.1))
        >>> start = Snapshot(running_statistics(net), optimizer, torch.device("cpu"))
        >>> _, drawn = net(torch.tensor([[1.0], [3.0]])), torch.rand(2)
        >>> start.restore()
        >>> net.running_mean, torch.equal(torch.rand(2), drawn)
        (tensor([0.]), True)
    """

    def __init__(
        self,
        statistics: Sequence[Tensor],
        optimizer: SharpnessAware,
        device: torch.device,
        method: MethodStep | None = None,
    ) -> None:
        self._optimizer = optimizer
        self._method = method
        self._device = device
        self._statistics = [(value, value.clone()) for value in statistics]
        self._memory = {param: dict(values) for param, values in optimizer.state.items()}
        self._numbers = dict(optimizer.numbers)
        self._method_state = {} if method is None else method.state()
        self._random = torch.get_rng_state()
        self._random_on_device = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def restore(self) -> None:
        """Restore everything."""
        for value, kept in self._statistics:
            value.copy_(kept)
        self._optimizer.state.clear()
        self._optimizer.state.update({param: dict(values) for param, values in self._memory.items()})
        self._optimizer.numbers.clear()
        self._optimizer.numbers.update(self._numbers)
        if self._method is not None:
            self._method.restore(self._method_state)
        _reset_unscaling(self._optimizer)
        torch.set_rng_state(self._random)
        if self._random_on_device is not None:
            torch.cuda.set_rng_state(self._random_on_device, self._device)


def _reset_unscaling(optimizer: SharpnessAware) -> None:
    """Let a gradient scaler unscale again in the same step, which it refuses until an update; its scale stays."""
    if optimizer.scaler is not None:
        weight = optimizer.param_groups[0]["params"][0]
        optimizer.scaler.scale(torch.zeros((), device=weight.device))  # its scale is made by the first use
        optimizer.scaler.update(new_scale=optimizer.scaler.get_scale())
