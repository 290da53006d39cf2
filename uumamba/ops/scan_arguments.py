"""The arguments of one selective scan, checked once and handed to whichever backend runs it."""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor


@dataclass(frozen=True)
class ScanArguments:
    """What a backend is called with; ``selective_scan`` explains each.

    Raises:
        TypeError: when a tensor is not floating point.
        ValueError: when a shape or device does not fit that of ``u``.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None
    delta_softplus: bool = False
    return_last_state: bool = False

    def __post_init__(self) -> None:
        for name, tensor in self.tensors().items():
            _check_kind(name, tensor, self.u.device)
        if self.u.ndim != 3 or 0 in self.u.shape:
            raise ValueError(_expected("u", "(batch, channels, length), none of them 0", self.u))
        if self.A.ndim != 2 or self.A.shape[0] != self.u.shape[1]:
            raise ValueError(_expected("A", f"(channels, states) with {self.u.shape[1]} channels as in u", self.A))
        for name in ("delta", "z"):
            _check_shape(name, self.tensors().get(name), tuple(self.u.shape), "(batch, channels, length)")
        for name in ("D", "delta_bias"):
            _check_shape(name, self.tensors().get(name), (self.u.shape[1],), "(channels,)")
        _check_projection("B", self.B, self.u, self.A.shape[1])
        _check_projection("C", self.C, self.u, self.A.shape[1])

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that was given, by the name of its argument."""
        names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
        return {name: tensor for name in names if (tensor := getattr(self, name)) is not None}

    @property
    def arithmetic_dtype(self) -> torch.dtype:
        """The widest type among the tensors, float32 at least."""
        return reduce(torch.promote_types, (tensor.dtype for tensor in self.tensors().values()), torch.float32)


def _check_kind(name: str, tensor: Tensor, device: torch.device) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"selective_scan: {name} should be a real floating-point tensor; found {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"selective_scan: {name} should be on {device} like u; found it on {tensor.device}")


def _check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...], axes: str) -> None:
    if tensor is not None and tuple(tensor.shape) != shape:
        raise ValueError(_expected(name, f"{axes} = {shape}", tensor))


def _check_projection(name: str, tensor: Tensor, u: Tensor, states: int) -> None:
    batch, channels, length = u.shape
    if tensor.ndim == 4:
        groups = tensor.shape[1]
        if groups == 0 or channels % groups:
            raise ValueError(
                _expected(name, f"(batch, groups, states, length) with groups dividing {channels}", tensor)
            )
        _check_shape(name, tensor, (batch, groups, states, length), "(batch, groups, states, length)")
    elif tensor.ndim == 3:
        _check_shape(name, tensor, (batch, states, length), "(batch, states, length)")
    elif tensor.ndim == 2:
        _check_shape(name, tensor, (channels, states), "(channels, states)")
    else:
        axes = "(channels, states), (batch, states, length) or (batch, groups, states, length)"
        raise ValueError(_expected(name, axes, tensor))


def _expected(name: str, expected: str, found: Tensor) -> str:
    return f"selective_scan: {name} should be {expected}; found shape {tuple(found.shape)}"
