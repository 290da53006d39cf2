"""Weights that are exactly as before once a climb is over."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter, is_

import torch
from torch import Tensor

DTYPE = attrgetter("dtype")
Kinds = tuple[list[torch.dtype], list[int]]


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
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # each tensor beside its buffer, so that no id is used again
        self._last: tuple[list[Tensor], Kinds, list[Tensor]] = ([], ([], []), [])

    @contextmanager
    def restored_after(self, params: Sequence[Tensor]) -> Iterator[None]:
        """Copy the weights now and back at the end, bit for bit, also when the block raises.

        They are copied, never replaced, so views of them in a data-parallel wrapper or a captured graph stay valid; and
        not found again by subtracting the perturbation, which leaves 0.4 % of float32 entries one rounding off.
        """
        params = list(params)
        buffers = self._buffers_of(params)
        with torch.no_grad():
            _copy(buffers, params)
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(params, buffers)
            forget_casts()

    def _buffers_of(self, params: list[Tensor]) -> list[Tensor]:
        """Those of the last call if it was of the same tensors: a dictionary asked for each costs as much as a copy."""
        kinds = _kinds(params)
        last, last_kinds, buffers = self._last
        if len(params) != len(last) or not all(map(is_, params, last)) or kinds != last_kinds:
            self._allocate([param for param in params if not self._has_buffer_of(param)])
            buffers = [self._kept[id(param)][1] for param in params]
            self._last = params, kinds, buffers
        return buffers

    def _has_buffer_of(self, param: Tensor) -> bool:
        return id(param) in self._kept and _kinds([param]) == _kinds([self._kept[id(param)][1]])

    def _allocate(self, params: Sequence[Tensor]) -> None:
        """Buffers side by side in one piece of memory a type and device, which is read and written in half the time."""
        alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for param in params:
            alike.setdefault((param.dtype, param.device), []).append(param)
        for (dtype, device), members in alike.items():
            piece = torch.empty(sum(param.numel() for param in members), dtype=dtype, device=device)
            for param, part in zip(members, piece.split([param.numel() for param in members]), strict=True):
                strides = torch.empty_like(param, device="meta").stride()  # those of a dense tensor in the same order
                self._kept[id(param)] = param, part.as_strided(param.shape, strides)


def _kinds(tensors: list[Tensor]) -> Kinds:
    """What changes when a network is cast or moved while its parameters stay the same objects."""
    return list(map(DTYPE, tensors)), list(map(Tensor.get_device, tensors))


def forget_casts() -> None:
    """Drop autocast's low-precision copies of weights: in an outer autocast they outlive a change of the weights."""
    torch.clear_autocast_cache()


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
