"""Selective scan in C++ for the CPU, described in ``native/scan_kernel.h``.

Channels fill vectors; threads share channels, batch and, where those are few, the length.
"""

import ctypes
from collections.abc import Iterator
from ctypes import c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from uumamba.ops.native_library import Rows, address, call, choose_threads, instruction_set_number
from uumamba.ops.scan_arguments import TENSORS, ScanArguments, projection_strides

SAVED_EVERY = 32  # positions between two states kept for the backward pass: kCheckpointSteps of the library
_CONTIGUOUS = ("A", "D", "delta_bias")


class _Projection(ctypes.Structure):
    _fields_ = (
        ("data", c_void_p),
        *((axis, c_int64) for axis in ("batch", "group", "state", "length", "groups")),
    )


_TENSOR_FIELDS = (
    *((name, Rows) for name in ("u", "delta", "z")),
    *((name, _Projection) for name in ("B", "C")),
    *((name, c_void_p) for name in _CONTIGUOUS),
)


class _Scan(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("batch", "channels", "states", "length")),
        *((name, c_int32) for name in ("softplus", "threads", "spans", "instruction_set")),
        *_TENSOR_FIELDS,
    )


class _Outputs(ctypes.Structure):
    _fields_ = (("y", Rows), ("last_state", c_void_p), ("carries", c_void_p))


class _Gradients(ctypes.Structure):
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
        keep: return the states before every ``SAVED_EVERY`` positions, (batch, saved, states, channels).
        instruction_set: one of ``instruction_sets()``; the best when None.
        spans: pieces that the length is cut into; 0 leaves it to the number of threads.
    """
    problem, held = _describe_scan(scan, instruction_set, spans)
    y = torch.empty_like(scan.u, dtype=torch.float32)
    last_state = y.new_empty((y.shape[0], *scan.A.shape))
    carries = scan.empty_carries(SAVED_EVERY, keep=keep)
    call("scan_forward", problem, _Outputs(Rows.describe(y), address(last_state), address(carries) if keep else None))
    del held
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
    """Return gradients of the eight tensors from those of y and the last state; see ``scan_operator``."""
    problem, held = _describe_scan(scan, instruction_set, spans)
    grad_y, grad_last_state = grad_y.float(), grad_last_state.float().contiguous()
    grads = {
        name: torch.empty_like(
            tensor,
            dtype=torch.float32,
            memory_format=torch.contiguous_format if name in _CONTIGUOUS else torch.preserve_format,
        )
        for name, tensor in scan.tensors().items()
    }
    call(
        "scan_backward",
        problem,
        _Gradients(Rows.describe(grad_y), address(grad_last_state), address(carries), *_describe_tensors(grads)),
    )
    del held
    given = {name: grads[name].to(tensor.dtype) for name, tensor in scan.tensors().items()}
    return tuple(given.get(name) for name in TENSORS)


def _describe_scan(scan: ScanArguments, instruction_set: str | None, spans: int) -> tuple[_Scan, dict[str, Tensor]]:
    """Return the library's description of a scan, and the tensors that must outlive the call."""
    held = {
        name: tensor.float().contiguous() if name in _CONTIGUOUS else tensor.float()
        for name, tensor in scan.tensors().items()
    }
    (batch, channels, length), states = scan.u.shape, scan.A.shape[1]
    threads, number = choose_threads(batch * scan.A.numel() * length), instruction_set_number(instruction_set)
    sizes = (batch, channels, states, length, scan.delta_softplus, threads, spans, number)
    return _Scan(*sizes, *_describe_tensors(held)), held


def _describe_tensors(tensors: dict[str, Tensor]) -> Iterator[Rows | _Projection | int | None]:
    """Describe the scan's tensors, or their gradients, in the order of the library's structures."""
    for name in ("u", "delta", "z"):
        yield Rows.describe(tensors.get(name))
    for name in ("B", "C"):
        tensor = tensors[name]
        groups = {2: tensor.shape[0], 3: 1, 4: tensor.shape[1]}[tensor.ndim]
        yield _Projection(tensor.data_ptr(), *projection_strides(tensor), groups)
    for name in _CONTIGUOUS:
        yield address(tensors.get(name))
