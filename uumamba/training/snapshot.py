"""Snapshot of the state at the start of a step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from uumamba.optim import SharpnessAware
from uumamba.runtime.seeds import get_random_state, set_random_state
from uumamba.training.method_step import MethodStep


class Snapshot:
    """State that a step changes before it updates the weights.

    The snapshot holds running statistics, the state of optimizer and method, and the random states. The optimizer
    restores the weights itself when a pass raises. Per-parameter state of an optimizer is stored by reference, not
    copied: the rules replace such tensors before the weight update, and change them in place only in the update.

    Args:
        statistics: running statistics of the network, which are copied; most networks of the package have none.
        optimizer: an optimizer of uumamba.optim.
        device: device whose random state is stored in addition to the CPU's.
        method: method whose state is copied.

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
        self._random = get_random_state(device)

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the stored state."""
        for value, stored in self._statistics:
            value.copy_(stored)
        self._optimizer.state.clear()
        self._optimizer.state.update({param: dict(values) for param, values in self._memory.items()})
        self._optimizer.numbers.clear()
        self._optimizer.numbers.update(self._numbers)
        if self._method is not None:
            self._method.restore(self._method_state)
        set_random_state(self._random, self._device)
        scaler = self._optimizer.scaler
        if scaler is not None:  # refuses a second unscaling before an update, so its scale is updated to itself
            scaler.scale(torch.zeros((), device=self._device))  # creates the scale if this is the first use
            scaler.update(new_scale=scaler.get_scale())
