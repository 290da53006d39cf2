"""Selective scan in Triton kernels for CUDA: split along the length, or in one pass if short.

Arithmetic is float32. Nothing is added atomically, so two runs give the same bits. Inputs may have any strides; those
with channels innermost, and B and C with states innermost, are read fastest. ``triton`` is imported at first use.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from math import gcd
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from uumamba.ops.scan_arguments import ScanArguments, channels_per_group, projection_strides

# The kernels save the state before every 16 steps, so 16 states take as much room as u in float32.
SAVED_EVERY = 16
# How short and long a chunk may be. Between, it is as long as leaves 64 programs to a multiprocessor: registers let 8
# to 16 of them run at a time, and four rounds or more have a short tail.
_CHUNK_STEPS = (64, 512)
_PROGRAMS_FOR_EACH = 64
# Up to this length one launch instead of three is worth more than the parallelism of a split.
_ONE_PASS_LENGTH = 512


@dataclass(frozen=True)
class Plan:
    """Division of a scan into programs.

    Attributes:
        chunk_steps: steps of a program, a multiple of 16; in one pass not less than the length.
        forward: channels of a program as (in one thread, side by side in lanes), powers of two; the lanes that
            channels leave free share the states among them.
        backward: the same for the kernel that writes the gradients.
        carry: chunks and (channel, state) columns that the second phase takes at a time.
        warps: of a program of the first and third phase; 1, or reductions go through shared memory.
        carry_warps: of a program of the second phase.
    """

    chunk_steps: int
    forward: tuple[int, int] = (1, 32)
    backward: tuple[int, int] = (2, 8)
    carry: tuple[int, int] = (128, 32)
    warps: int = 1
    carry_warps: int = 4


def unavailable() -> str | None:
    """Return why this backend cannot run here, or None."""
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if not torch.cuda.is_available():
        return "triton needs a CUDA device and torch finds none"
    return None


def triton_forward(arguments: ScanArguments, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(y, last_state, carries)``; see ``scan_operator``."""
    scan, u, D, z = _Scan(arguments), arguments.u, arguments.D, arguments.z
    y = torch.empty_like(u)
    states = scan.state_rows(scan.chunks + 1)
    carries = arguments.empty_carries(SAVED_EVERY, keep=keep)
    inputs = {"u": _signal(u), "delta": _signal(arguments.delta), "B": scan.B}
    with torch.cuda.device_of(u):
        states[:, 0] = 0
        if scan.chunks > 1:
            sums = scan.channel_rows(scan.chunks)
            scan.launch(scan.kernels.chunk_ends, scan.plan.forward, rows=states, sums=sums, **inputs)
            scan.launch_carry(states, sums, reverse=False)
        outputs = {"y": _signal(y), "carries": carries if keep else None}
        scan.launch(
            scan.kernels.outputs, scan.plan.forward, C=scan.C, D=D, z=_signal(z), rows=states,
            LAST=scan.chunks == 1, **inputs, **outputs,
        )  # fmt: skip
    return y, states[:, -1].mT.contiguous(), carries


def triton_backward(
    grad_y: Tensor, grad_last_state: Tensor, carries: Tensor, arguments: ScanArguments
) -> tuple[Tensor | None, ...]:
    """Return gradients of the eight tensors, each as ``torch.empty_like`` of it; None where it is."""
    scan = _Scan(arguments)
    u, delta, A, B, C = arguments.u, arguments.delta, arguments.A, arguments.B, arguments.C
    D, z, delta_bias = arguments.D, arguments.z, arguments.delta_bias
    if grad_y.stride() != u.stride():
        grad_y = torch.empty_like(u).copy_(grad_y)
    du, ddelta, dz = torch.empty_like(u), torch.empty_like(delta), None if z is None else torch.empty_like(z)
    passed = scan.state_rows(scan.chunks + 1)
    parts = {f"grad_{name}": scan.projection_parts(tensor) for name, tensor in (("B", B), ("C", C))}
    parts["grad_A"] = scan.state_rows(scan.chunks)
    parts |= {name: scan.channel_rows(scan.chunks) for name in ("grad_D", "grad_bias")}
    inputs = {"grad_y": _signal(grad_y), "delta": _signal(delta), "z": _signal(z), "C": scan.C, "rows": passed}
    with torch.cuda.device_of(u):
        passed[:, -1] = grad_last_state.mT
        if scan.chunks > 1:
            sums = scan.channel_rows(scan.chunks)
            scan.launch(scan.kernels.chunk_gradients, scan.plan.forward, sums=sums, **inputs)
            scan.launch_carry(passed, sums, reverse=True)
        outputs = {"grad_u": _signal(du), "grad_delta": _signal(ddelta), "grad_z": _signal(dz), **parts}
        scan.launch(
            scan.kernels.gradients, scan.plan.backward, u=_signal(u), B=scan.B, D=D, carries=carries,
            **inputs, **outputs,
        )  # fmt: skip
        dB, dC = (scan.projection_total(parts[f"grad_{name}"], tensor) for name, tensor in (("B", B), ("C", C)))
        dA = torch.empty_like(A).copy_(_total(parts["grad_A"]).t())
        dD = None if D is None else torch.empty_like(D).copy_(_total(parts["grad_D"]))
        dbias = None if delta_bias is None else torch.empty_like(delta_bias).copy_(_total(parts["grad_bias"]))
    return du, ddelta, dA, dB, dC, dD, dz, dbias


def _plan(batch: int, channels: int, length: int, multiprocessors: int) -> Plan:
    """Choose one pass if that fills the device or the input is short, else chunks that fill it.

    Example:
        >>> _plan(2, 64, 917_504, 132).chunk_steps, _plan(4, 512, 4480, 132).chunk_steps
        (256, 64)
        >>> _plan(2, 560, 320, 132)                                     # one pass over 320 steps
        Plan(chunk_steps=320, forward=(1, 8), backward=(1, 8), carry=(128, 32), warps=1, carry_warps=4)
    """
    warps, wanted = batch * -(-channels // 32), multiprocessors * _PROGRAMS_FOR_EACH
    whole = -(-length // SAVED_EVERY) * SAVED_EVERY
    if warps >= wanted:
        return Plan(whole)
    if length <= _ONE_PASS_LENGTH:
        return Plan(whole, forward=(1, 8), backward=(1, 8))
    shortest, longest = _CHUNK_STEPS
    return Plan(min(longest, max(shortest, 1 << (max(1, warps * length // wanted).bit_length() - 1))))


class _Scan:
    """Sizes, plan and arguments that all kernels of one scan share."""

    def __init__(self, scan: ScanArguments) -> None:
        self.kernels = _kernels()
        u, A = scan.u, scan.A
        self.u = u
        self.batch, self.channels, self.length = u.shape
        self.states = A.shape[1]
        multiprocessors = torch.cuda.get_device_properties(u.device).multi_processor_count if u.is_cuda else 1
        self.plan = _plan(self.batch, self.channels, self.length, multiprocessors)
        self.chunks = -(-self.length // self.plan.chunk_steps)
        self.B, self.C = _projection(scan.B, self.channels), _projection(scan.C, self.channels)
        self.band = gcd(self.B.width, self.C.width)
        self.A = {"A": A, "A_channel": A.stride(0), "A_state": A.stride(1)}
        self.common = {
            **self.A,
            "bias": scan.delta_bias,
            "chunks": self.chunks,
            "band": self.band,
            "channels": self.channels,
            "length": self.length,
            "states": self.states,
            "chunk_steps": self.plan.chunk_steps,
            "zero": 0,
            "SOFTPLUS": scan.delta_softplus,
            "STATES": 1 << (self.states - 1).bit_length(),
        }

    def launch(self, kernel: Any, block: tuple[int, int], **arguments: Any) -> None:
        """Run a kernel of the first or third phase over blocks of so many channels."""
        flags = {f"{name}_FIXED": arguments[name].data.ndim == 2 for name in ("B", "C") if name in arguments}
        blocks = self.count_blocks(block)
        kernel[(self.batch * self.chunks * blocks,)](
            **self.common, **arguments, **flags, blocks=blocks, OUTER=block[0], INNER=block[1],
            num_warps=self.plan.warps,
        )  # fmt: skip

    def launch_carry(self, rows: Tensor, sums: Tensor, *, reverse: bool) -> None:
        """Run the second phase, which turns each row of states into the state after all chunks before it."""
        chunks, columns = self.plan.carry
        self.kernels.carry[(-(-self.channels * self.states // columns), self.batch)](
            rows=rows, sums=sums, **self.A, chunks=self.chunks, channels=self.channels, states=self.states,
            REVERSE=reverse, CHUNKS=chunks, COLUMNS=columns, num_warps=self.plan.carry_warps,
        )  # fmt: skip

    def count_blocks(self, block: tuple[int, int]) -> int:
        """Return the number of blocks of channels, none of which reaches beyond its band."""
        return self.channels // self.band * -(-self.band // (block[0] * block[1]))

    def state_rows(self, count: int) -> Tensor:
        """Return memory for ``count`` states of every channel."""
        return self.u.new_empty((self.batch, count, self.states, self.channels), dtype=torch.float32)

    def channel_rows(self, count: int) -> Tensor:
        """Return memory for ``count`` numbers of every channel."""
        return self.u.new_empty((self.batch, count, self.channels), dtype=torch.float32)

    def projection_parts(self, projection: Tensor) -> Tensor:
        """Return memory for the parts whose sum is the gradient of B or C."""
        if projection.ndim == 2:
            return self.state_rows(self.chunks)
        shape = (self.count_blocks(self.plan.backward), self.batch, self.length, self.states)
        return self.u.new_empty(shape, dtype=torch.float32)

    def projection_total(self, parts: Tensor, projection: Tensor) -> Tensor:
        """Return the gradient of B or C from its parts."""
        total = torch.empty_like(projection)
        if projection.ndim == 2:
            return total.copy_(_total(parts).t())
        groups = projection.shape[1] if projection.ndim == 4 else 1
        grouped = parts.unflatten(0, (groups, -1)).sum(1)
        return total.copy_(grouped.permute(1, 0, 3, 2).reshape(projection.shape))


def _total(parts: Tensor) -> Tensor:
    """Sum parts over batch and chunks in float64, since float32 lost two digits over many chunks."""
    return parts.sum((0, 1), dtype=torch.float64)


def _signal(tensor: Tensor | None) -> Any:
    return None if tensor is None else _kernels().Signal(tensor, *tensor.stride())


def _projection(tensor: Tensor, channels: int) -> Any:
    strides = projection_strides(tensor)
    return _kernels().Projection(tensor, *strides, channels_per_group(tensor, channels))


def _kernels() -> ModuleType:
    from uumamba.ops import triton_kernels

    return triton_kernels
