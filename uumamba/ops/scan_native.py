"""The selective scan in C++ for the CPU: vectors of channels, threads over channels, batch and, where those are few,
length. See ``native/scan_kernel.h`` for how.
"""

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from math import ceil

import torch
from torch import Tensor

from uumamba.ops.native_library import Rows, address, call, number_of, threads_for

SAVED_EVERY = 32  # positions between two states kept for the backward pass: kCheckpointSteps of the library


class _Projection(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        *((axis, c_int64) for axis in ("batch", "group", "state", "length", "groups")),
    )


class _Scan(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("batch", "channels", "states", "length")),
        *((name, c_int32) for name in ("softplus", "threads", "spans", "instruction_set")),
        *((name, Rows) for name in ("u", "delta", "z")),
        *((name, _Projection) for name in ("B", "C")),
        *((name, c_void_p) for name in ("A", "D", "delta_bias")),
    )


class _Outputs(ctypes.Structure):
    _fields_ = (("y", Rows), ("last_state", c_void_p), ("carries", c_void_p))


class _Gradients(ctypes.Structure):
    _fields_ = (
        ("y", Rows),
        *((name, c_void_p) for name in ("last_state", "carries")),
        *((name, Rows) for name in ("u", "delta", "z")),
        *((name, _Projection) for name in ("B", "C")),
        *((name, c_void_p) for name in ("A", "D", "delta_bias")),
    )


def native_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    keep: bool,
    *,
    instruction_set: str | None = None,
    spans: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(y, last_state, carries)``; see ``scan_operator``.

    Args:
        u, delta, A, B, C, D, z, delta_bias, delta_softplus: as for ``selective_scan``, on the CPU.
        keep: whether to return the states before every ``SAVED_EVERY`` positions, (batch, saved, states, channels).
        instruction_set: one of ``instruction_sets()``; the best when None.
        spans: pieces that the length is cut into; 0 leaves it to the number of threads.
    """
    problem, held = _problem(u, delta, A, B, C, D, z, delta_bias, delta_softplus, instruction_set, spans)
    y = torch.empty_like(u, dtype=torch.float32)
    last_state = u.new_empty((u.shape[0], *A.shape), dtype=torch.float32)
    kept = (u.shape[0], ceil(u.shape[2] / SAVED_EVERY), *A.shape[::-1]) if keep else (0,)
    carries = u.new_empty(kept, dtype=torch.float32)
    outputs = _Outputs(Rows.of(y), last_state.data_ptr(), carries.data_ptr() if keep else None)
    call("scan_forward", problem, outputs)
    del held
    return y.to(u.dtype), last_state, carries


def native_backward(
    grad_y: Tensor,
    grad_last_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    carries: Tensor,
    delta_softplus: bool,
    *,
    instruction_set: str | None = None,
    spans: int = 0,
) -> tuple[Tensor | None, ...]:
    """Gradients of the eight tensors from those of y and the last state; see ``scan_operator``."""
    problem, held = _problem(u, delta, A, B, C, D, z, delta_bias, delta_softplus, instruction_set, spans)
    grad_y, grad_last_state = grad_y.float(), grad_last_state.float().contiguous()
    inputs = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    grads = {
        name: None if tensor is None else torch.empty_like(tensor, dtype=torch.float32, memory_format=_format_of(name))
        for name, tensor in inputs.items()
    }
    pointers = {
        **{name: Rows.of(grads[name]) for name in ("u", "delta", "z")},
        **{name: _projection(tensor, u) for name in ("B", "C") if (tensor := grads[name]) is not None},
        **{name: address(grads[name]) for name in ("A", "D", "delta_bias")},
    }
    gradients = _Gradients(y=Rows.of(grad_y), last_state=address(grad_last_state), carries=address(carries), **pointers)
    call("scan_backward", problem, gradients)
    del held
    return tuple(
        None if tensor is None or grad is None else grad.to(tensor.dtype)
        for tensor, grad in zip(inputs.values(), grads.values(), strict=True)
    )


def _problem(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    instruction_set: str | None,
    spans: int,
) -> tuple[_Scan, list[Tensor | None]]:
    """What the library is called with, and the tensors that have to live as long."""
    batch, channels, length = u.shape
    u, delta, B, C = (tensor.float() for tensor in (u, delta, B, C))
    z = None if z is None else z.float()
    A = A.float().contiguous()
    D, delta_bias = (None if tensor is None else tensor.float().contiguous() for tensor in (D, delta_bias))
    problem = _Scan(
        *(batch, channels, A.shape[1], length),
        *(delta_softplus, threads_for(batch * A.numel() * length), spans, number_of(instruction_set)),
        *(Rows.of(tensor) for tensor in (u, delta, z)),
        *(_projection(tensor, u) for tensor in (B, C)),
        *(address(tensor) for tensor in (A, D, delta_bias)),
    )
    return problem, [u, delta, z, B, C, A, D, delta_bias]


def _projection(tensor: Tensor, u: Tensor) -> _Projection:
    """B or C, or the gradient of one, in any of its three forms; an axis that a form lacks has stride 0."""
    strides = tensor.stride()
    if tensor.ndim == 2:
        return _Projection(tensor.data_ptr(), 0, strides[0], strides[1], 0, u.shape[1])
    if tensor.ndim == 3:
        return _Projection(tensor.data_ptr(), strides[0], 0, strides[1], strides[2], 1)
    return _Projection(tensor.data_ptr(), *strides, tensor.shape[1])


def _format_of(name: str) -> torch.memory_format:
    return torch.contiguous_format if name in {"A", "D", "delta_bias"} else torch.preserve_format
