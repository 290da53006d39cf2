"""Weights that are exactly as before once a climb is over."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class WeightBackup:
    """Buffers that hold the weights while they are moved, allocated once and used again by every step.

    Example:
        >>> weight, backup = torch.nn.Parameter(torch.tensor([0.1])), WeightBackup()
        >>> with backup.restored_after([weight]), torch.no_grad():
        ...     _ = weight.add_(1)
        >>> weight.item() == torch.tensor(0.1).item()
        True
    """

    def __init__(self) -> None:
        self._buffers: dict[Tensor, Tensor] = {}

    @contextmanager
    def restored_after(self, params: Sequence[Tensor]) -> Iterator[None]:
        """Copy the weights now and back at the end, bit for bit, also when the block raises.

        They are copied, never replaced, so views of them in a data-parallel wrapper or a captured graph stay valid; and
        not found again by subtracting the perturbation, which leaves 0.4 % of float32 entries one rounding off.
        """
        params = list(params)
        buffers = [self._buffer_of(param) for param in params]
        with torch.no_grad():
            _copy(buffers, params)
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(params, buffers)
            forget_casts()

    def _buffer_of(self, param: Tensor) -> Tensor:
        buffer = self._buffers.get(param)
        if buffer is None or buffer.dtype != param.dtype or buffer.device != param.device:
            buffer = self._buffers[param] = torch.empty_like(param, requires_grad=False)
        return buffer


def forget_casts() -> None:
    """Drop autocast's low-precision copies of weights: in an outer autocast they outlive a change of the weights."""
    torch.clear_autocast_cache()


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
