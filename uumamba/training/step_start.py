"""What a step changes before the weights move, as it was: so that a step that failed can be taken again."""

from collections.abc import Sequence

import torch
from torch import Tensor

from uumamba.optim import SharpnessAware
from uumamba.training.method_step import MethodStep


class StepStart:
    """Running statistics, what optimizer and method remember, and the random numbers at the start of a step.

    The engine itself puts the weights back where a pass raises. What a rule keeps by parameter is held, not copied: the
    rules replace such tensors before the update of the weights, and change them in place only with it.

    Args:
        statistics: the network's running statistics, of which copies are made; most of our networks have none.
        optimizer: of the family.
        device: whose random generator counts beside the CPU's.
        method: what is added to the step; its state is copied.

    Example:
        >>> from functools import partial
        >>> from uumamba.optim.restore import running_statistics
        >>> net = torch.nn.BatchNorm1d(1)
        >>> optimizer = SharpnessAware(net.parameters(), partial(torch.optim.SGD, lr=0.1))
        >>> start = StepStart(running_statistics(net), optimizer, torch.device("cpu"))
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
        self._state_of_method = {} if method is None else method.state()
        self._device = device
        self._statistics = [(value, value.clone()) for value in statistics]
        self._memory = {param: dict(values) for param, values in optimizer.state.items()}
        self._numbers = dict(optimizer.numbers)
        self._random = torch.get_rng_state()
        self._random_of_device: Tensor | None = None
        if device.type == "cuda":
            self._random_of_device = torch.cuda.get_rng_state(device)

    @torch.no_grad()
    def restore(self) -> None:
        """Bring all of it back."""
        for value, kept in self._statistics:
            value.copy_(kept)
        self._optimizer.state.clear()
        self._optimizer.state.update({param: dict(values) for param, values in self._memory.items()})
        self._optimizer.numbers.clear()
        self._optimizer.numbers.update(self._numbers)
        if self._method is not None:
            self._method.restore(self._state_of_method)
        _forget_unscaling(self._optimizer)
        torch.set_rng_state(self._random)
        if self._random_of_device is not None:
            torch.cuda.set_rng_state(self._random_of_device, self._device)


def _forget_unscaling(optimizer: SharpnessAware) -> None:
    """Let a gradient scaler unscale again in the same step, which it refuses until an update; its scale stays."""
    if optimizer.scaler is None:
        return
    weight = optimizer.param_groups[0]["params"][0]
    optimizer.scaler.scale(torch.zeros((), device=weight.device))  # its scale is made by the first use
    optimizer.scaler.update(new_scale=optimizer.scaler.get_scale())
