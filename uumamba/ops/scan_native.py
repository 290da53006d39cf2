"""Selective scan in C++ for the CPU; see ``native/scan_kernel.h``.

One vector holds neighbouring channels. Threads divide channels and batch; if there are too few, also the length.
"""

import ctypes
from collections.abc import Iterator
from ctypes import c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from uumamba.ops.native_library import Rows, call_library, choose_instruction_set, choose_threads, get_pointer
from uumamba.ops.scan_arguments import TENSORS, ScanArguments, projection_strides

STEPS_PER_CARRY = 32  # kCheckpointSteps of the library: positions between two states saved for the backward pass
_CONTIGUOUS = ("A", "D", "delta_bias")


class _ProjectionFields(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        *((axis, c_int64) for axis in ("batch", "group", "state", "length", "groups")),
    )


_TENSOR_FIELDS = (
    *((name, Rows) for name in ("u", "delta", "z")),
    *((name, _ProjectionFields) for name in ("B", "C")),
    *((name, c_void_p) for name in _CONTIGUOUS),
)


class _ScanFields(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("batch", "channels", "states", "length")),
        *((name, c_int32) for name in ("softplus", "threads", "spans", "instruction_set")),
        *_TENSOR_FIELDS,
    )


class _Outputs(ctypes.Structure):
    _fields_ = (("y", Rows), ("last_state", c_void_p), ("carries", c_void_p))


class _ScanGradients(ctypes.Structure):
    _fields_ = (
        ("y", Rows),
        *((name, c_void_p) for name in ("last_state", "carries")),
        *_TENSOR_FIELDS,
    )


def native_forward(
    scan: ScanArguments, *, keep: bool, instruction_set: str | None = None, spans: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(y, last_state, carries)``; see ``scan_operator``.

    Args:
        scan: arguments on the CPU.
        keep: save the states for the backward pass in ``carries``, (batch, saved, states, channels).
        instruction_set: one of ``instruction_sets()``; None for the best.
        spans: pieces of the length that are computed in parallel; 0 for a choice by the number of threads.
    """
    problem, _described = _describe_scan(scan, instruction_set, spans)
    y = torch.empty_like(scan.u, dtype=torch.float32)
    last_state = y.new_empty((y.shape[0], *scan.A.shape))
    carries = scan.empty_carries(STEPS_PER_CARRY, keep=keep)
    call_library(
        "scan_forward",
        problem,
        _Outputs(Rows.describe(y), get_pointer(last_state), get_pointer(carries) if keep else None),
    )
    return y.to(scan.u.dtype), last_state, carries


def native_backward(
    grad_y: Tensor,
    grad_last_state: Tensor,
    carries: Tensor,
    scan: ScanArguments,
    *,
    instruction_set: str | None = None,
    spans: int = 0,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the eight tensors; see ``scan_operator``."""
    problem, _described = _describe_scan(scan, instruction_set, spans)
    grad_y, grad_last_state = grad_y.float(), grad_last_state.float().contiguous()
    grads = {
        name: torch.empty_like(
            tensor,
            dtype=torch.float32,
            memory_format=torch.contiguous_format if name in _CONTIGUOUS else torch.preserve_format,
        )
        for name, tensor in scan.tensors().items()
    }
    call_library(
        "scan_backward",
        problem,
        _ScanGradients(
            Rows.describe(grad_y), get_pointer(grad_last_state), get_pointer(carries), *_describe_tensors(grads)
        ),
    )
    return tuple(
        None if tensor is None else grads[name].to(tensor.dtype)
        for name, tensor in zip(TENSORS, scan.every_tensor(), strict=True)
    )


def _describe_scan(
    scan: ScanArguments, instruction_set: str | None, spans: int
) -> tuple[_ScanFields, dict[str, Tensor]]:
    """Return a scan as the library's structure, and the described tensors.

    The described tensors must outlive the call.
    """
    described = {
        name: tensor.float().contiguous() if name in _CONTIGUOUS else tensor.float()
        for name, tensor in scan.tensors().items()
    }
    (batch, channels, length), states = scan.u.shape, scan.A.shape[1]
    threads, number = choose_threads(batch * scan.A.numel() * length), choose_instruction_set(instruction_set)
    sizes = (batch, channels, states, length, scan.delta_softplus, threads, spans, number)
    return _ScanFields(*sizes, *_describe_tensors(described)), described


def _describe_tensors(tensors: dict[str, Tensor]) -> Iterator[Rows | _ProjectionFields | int | None]:
    """Yield tensors or gradients in the field order of the library's structures."""
    for name in ("u", "delta", "z"):
        yield Rows.describe(tensors.get(name))
    for name in ("B", "C"):
        tensor = tensors[name]
        groups = {2: tensor.shape[0], 3: 1, 4: tensor.shape[1]}[tensor.ndim]
        yield _ProjectionFields(tensor.data_ptr(), *projection_strides(tensor), groups)
    for name in _CONTIGUOUS:
        yield get_pointer(tensors.get(name))
