"""Arguments of a selective scan and their checks, shared by all backends."""

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from uumamba.runtime.errors import UsageError, require

TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")


@dataclass(frozen=True)
class ScanArguments:
    """Arguments of a backend, as explained at ``selective_scan``.

    Raises:
        UsageError: a tensor is not real floating point, or its shape or device does not fit that of ``u``.
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
        tensors = self.tensors()
        for name, tensor in tensors.items():
            require(tensor.is_floating_point(), name, got=tensor.dtype, expected="a real floating-point type")
            device = self.u.device
            require(tensor.device == device, name, got=tensor.device, expected=f"{device}, the device of u")
        is_valid = self.u.ndim == 3 and 0 not in self.u.shape
        _check_shape("u", self.u, is_valid, "(batch, channels, length) without a 0")
        batch, channels, length = self.u.shape
        is_valid = self.A.ndim == 2 and self.A.shape[0] == channels
        _check_shape("A", self.A, is_valid, "({}, states)", channels)
        states = self.A.shape[1]
        shapes = dict.fromkeys(("delta", "z"), (batch, channels, length)) | dict.fromkeys(
            ("D", "delta_bias"), (channels,)
        )
        for name, shape in shapes.items():
            if name in tensors:
                _check_shape(name, tensors[name], tuple(tensors[name].shape) == shape, "{}", shape)
        for name in ("B", "C"):
            tensor = tensors[name]
            groups = tensor.shape[1] if tensor.ndim == 4 else 1
            # One form by its number of axes: a comparison with all forms would fix the batch size of an exported graph.
            forms = {2: (channels, states), 3: (batch, states, length), 4: (batch, groups, states, length)}
            fits = tuple(tensor.shape) == forms.get(tensor.ndim) and groups > 0 and channels % groups == 0
            expected = "{}, {} or (batch, groups, states, length) where groups divides {}"
            _check_shape(name, tensor, fits, expected, forms[2], forms[3], channels)

    def tensors(self) -> dict[str, Tensor]:
        """Return the given tensors by argument name."""
        return {name: tensor for name, tensor in zip(TENSORS, self.every_tensor(), strict=True) if tensor is not None}

    def every_tensor(self) -> tuple[Tensor | None, ...]:
        """Return the eight tensor arguments in order, None where not given."""
        return self.u, self.delta, self.A, self.B, self.C, self.D, self.z, self.delta_bias

    def empty_carries(self, saved_every: int, *, keep: bool) -> Tensor:
        """Return memory for the saved states of the backward pass.

        A state is saved before every ``saved_every`` positions. The shape is (batch, saved, states, channels), the type
        float32. Without ``keep`` the tensor is empty.
        """
        batch, _, length = self.u.shape
        shape = (batch, -(-length // saved_every), *self.A.shape[::-1]) if keep else (0,)
        return self.u.new_empty(shape, dtype=torch.float32)

    @property
    def arithmetic_dtype(self) -> torch.dtype:
        """Widest type among the tensors, at least float32."""
        return reduce(torch.promote_types, (tensor.dtype for tensor in self.tensors().values()), torch.float32)


def projection_strides(projection: Tensor) -> tuple[int, ...]:
    """Return strides of B or C as (batch, group, state, step).

    A missing axis has stride 0. In the form ``(channels, states)`` every channel is a group.
    """
    strides = projection.stride()
    return {2: (0, *strides, 0), 3: (strides[0], 0, *strides[1:]), 4: strides}[projection.ndim]


def channels_per_group(projection: Tensor, channels: int) -> int:
    """Return how many neighbouring channels share a group of B or C."""
    return channels // projection.shape[1] if projection.ndim == 4 else channels


def _check_shape(name: str, tensor: Tensor, fits: bool, expected: str, *sizes: object) -> None:
    """Raise unless a shape fits.

    Only the error reads the sizes, as an exported graph has symbols for them.
    """
    if not fits:
        raise UsageError(name, got=tuple(tensor.shape), expected=f"the shape {expected.format(*sizes)}")
