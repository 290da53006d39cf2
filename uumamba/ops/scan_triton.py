"""Selective scan in Triton kernels for CUDA.

A long scan is split along the length; a short scan runs in one pass. Arithmetic is float32. There are no atomic sums,
so two runs give the same bits. Inputs may have any strides; the fastest are u, delta and z with channels innermost, and
B and C with states innermost. ``triton`` is imported at first use.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from math import gcd
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from uumamba.ops.scan_arguments import ScanArguments, channels_per_group, projection_strides

# The kernels save the state before every 16 steps, so 16 states take as much memory as u in float32.
STEPS_PER_CARRY = 16
# Shortest and longest chunk. Between these limits a multiprocessor gets 64 programs: registers allow 8 to 16 at a time,
# and with four or more rounds few multiprocessors are idle in the last.
_CHUNK_STEPS = (64, 512)
_PROGRAMS_PER_MULTIPROCESSOR = 64
# Up to this length one launch instead of three saves more time than a split.
_ONE_PASS_LENGTH = 512
# With more than one warp, sums over a program of the first and third phase would go through shared memory.
_WARPS = 1
_CARRY_WARPS = 4


@dataclass(frozen=True)
class Plan:
    """Division of a scan into programs.

    Attributes:
        chunk_steps: steps of a program, a multiple of 16; in one pass at least the length.
        forward: channels of a program as (per thread, in neighbouring lanes), powers of two; the other lanes of the
            warp divide the states.
        backward: the same for the kernel of the gradients.
        carry: chunks and (channel, state) columns of one tile in the second phase.
    """

    chunk_steps: int
    forward: tuple[int, int] = (1, 32)
    backward: tuple[int, int] = (2, 8)
    carry: tuple[int, int] = (128, 32)


def find_missing_triton() -> str | None:
    """Return the missing requirement of this backend; None if it can run."""
    if find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    return None if torch.cuda.is_available() else "no CUDA device was found"


def triton_forward(arguments: ScanArguments, *, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``(y, last_state, carries)``; see ``scan_operator``."""
    scan, u, D, z = _Launcher(arguments), arguments.u, arguments.D, arguments.z
    y = torch.empty_like(u)
    states = scan.empty_states(scan.chunks + 1)
    carries = arguments.empty_carries(STEPS_PER_CARRY, keep=keep)
    inputs = {"u": _to_signal(u), "delta": _to_signal(arguments.delta), "B": scan.B}
    with torch.cuda.device_of(u):
        states[:, 0] = 0
        if scan.chunks > 1:
            sums = scan.empty_channels(scan.chunks)
            scan.launch(scan.kernels.chunk_ends, scan.plan.forward, rows=states, sums=sums, **inputs)
            scan.launch_carry(states, sums, reverse=False)
        outputs = {"y": _to_signal(y), "carries": carries if keep else None}
        scan.launch(
            scan.kernels.outputs, scan.plan.forward, C=scan.C, D=D, z=_to_signal(z), rows=states,
            LAST=scan.chunks == 1, **inputs, **outputs,
        )  # fmt: skip
    return y, states[:, -1].mT.contiguous(), carries


def triton_backward(
    grad_y: Tensor, grad_last_state: Tensor, carries: Tensor, arguments: ScanArguments
) -> tuple[Tensor | None, ...]:
    """Return the gradients of the eight tensors; see ``scan_operator``."""
    scan = _Launcher(arguments)
    u, delta, A, B, C = arguments.u, arguments.delta, arguments.A, arguments.B, arguments.C
    D, z, delta_bias = arguments.D, arguments.z, arguments.delta_bias
    if grad_y.stride() != u.stride():
        grad_y = torch.empty_like(u).copy_(grad_y)
    du, ddelta, dz = torch.empty_like(u), torch.empty_like(delta), None if z is None else torch.empty_like(z)
    passed = scan.empty_states(scan.chunks + 1)
    parts = {f"grad_{name}": scan.empty_projection_parts(tensor) for name, tensor in (("B", B), ("C", C))}
    parts["grad_A"] = scan.empty_states(scan.chunks)
    parts |= {name: scan.empty_channels(scan.chunks) for name in ("grad_D", "grad_bias")}
    inputs = {"grad_y": _to_signal(grad_y), "delta": _to_signal(delta), "z": _to_signal(z), "C": scan.C, "rows": passed}
    with torch.cuda.device_of(u):
        passed[:, -1] = grad_last_state.mT
        if scan.chunks > 1:
            sums = scan.empty_channels(scan.chunks)
            scan.launch(scan.kernels.chunk_gradients, scan.plan.forward, sums=sums, **inputs)
            scan.launch_carry(passed, sums, reverse=True)
        outputs = {"grad_u": _to_signal(du), "grad_delta": _to_signal(ddelta), "grad_z": _to_signal(dz), **parts}
        scan.launch(
            scan.kernels.gradients, scan.plan.backward, u=_to_signal(u), B=scan.B, D=D, carries=carries,
            **inputs, **outputs,
        )  # fmt: skip
        dB, dC = (_sum_projection_parts(parts[f"grad_{name}"], tensor) for name, tensor in (("B", B), ("C", C)))
        dA = torch.empty_like(A).copy_(_sum_parts(parts["grad_A"]).t())
        dD = None if D is None else torch.empty_like(D).copy_(_sum_parts(parts["grad_D"]))
        dbias = None if delta_bias is None else torch.empty_like(delta_bias).copy_(_sum_parts(parts["grad_bias"]))
    return du, ddelta, dA, dB, dC, dD, dz, dbias


def _plan(batch: int, channels: int, length: int, multiprocessors: int) -> Plan:
    """Choose between one pass and chunks that fill the device.

    One pass is chosen if it fills the device or the input is short.

    Example:
        >>> _plan(2, 64, 917_504, 132).chunk_steps, _plan(4, 512, 4480, 132).chunk_steps
        (256, 64)
        >>> _plan(2, 560, 320, 132)                                     # one pass over 320 steps
        Plan(chunk_steps=320, forward=(1, 8), backward=(1, 8), carry=(128, 32))
    """
    programs, wanted = batch * -(-channels // 32), multiprocessors * _PROGRAMS_PER_MULTIPROCESSOR
    padded_length = -(-length // STEPS_PER_CARRY) * STEPS_PER_CARRY
    if programs >= wanted:
        return Plan(padded_length)
    if length <= _ONE_PASS_LENGTH:
        return Plan(padded_length, forward=(1, 8), backward=(1, 8))
    shortest, longest = _CHUNK_STEPS
    return Plan(min(longest, max(shortest, 1 << (max(1, programs * length // wanted).bit_length() - 1))))


class _Launcher:
    """Launches all kernels of one scan with its sizes, plan and arguments."""

    def __init__(self, scan: ScanArguments) -> None:
        self.kernels = _kernels()
        u, A = scan.u, scan.A
        self.u = u
        self.batch, self.channels, self.length = u.shape
        self.states = A.shape[1]
        multiprocessors = torch.cuda.get_device_properties(u.device).multi_processor_count if u.is_cuda else 1
        self.plan = _plan(self.batch, self.channels, self.length, multiprocessors)
        self.chunks = -(-self.length // self.plan.chunk_steps)
        self.B, self.C = (
            self.kernels.Projection(tensor, *projection_strides(tensor), channels_per_group(tensor, self.channels))
            for tensor in (scan.B, scan.C)
        )
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
        """Run a kernel of the first or third phase.

        Each program takes one block of channels, ``block`` as in ``Plan.forward``.
        """
        flags = {f"{name}_FIXED": arguments[name].data.ndim == 2 for name in ("B", "C") if name in arguments}
        blocks = self.count_blocks(block)
        kernel[(self.batch * self.chunks * blocks,)](
            **self.common, **arguments, **flags, blocks=blocks, OUTER=block[0], INNER=block[1], num_warps=_WARPS
        )

    def launch_carry(self, rows: Tensor, sums: Tensor, *, reverse: bool) -> None:
        """Run the second phase: states after all previous chunks, in ``rows``."""
        chunks, columns = self.plan.carry
        self.kernels.carry[(-(-self.channels * self.states // columns), self.batch)](
            rows=rows, sums=sums, **self.A, chunks=self.chunks, channels=self.channels, states=self.states,
            REVERSE=reverse, CHUNKS=chunks, COLUMNS=columns, num_warps=_CARRY_WARPS,
        )  # fmt: skip

    def count_blocks(self, block: tuple[int, int]) -> int:
        """Return the number of blocks of channels; no block crosses a band."""
        return self.channels // self.band * -(-self.band // (block[0] * block[1]))

    def empty_states(self, count: int) -> Tensor:
        """Return memory for ``count`` states of every channel."""
        return self.u.new_empty((self.batch, count, self.states, self.channels), dtype=torch.float32)

    def empty_channels(self, count: int) -> Tensor:
        """Return memory for ``count`` numbers of every channel."""
        return self.u.new_empty((self.batch, count, self.channels), dtype=torch.float32)

    def empty_projection_parts(self, projection: Tensor) -> Tensor:
        """Return memory for the parts of the gradient of B or C."""
        if projection.ndim == 2:
            return self.empty_states(self.chunks)
        shape = (self.count_blocks(self.plan.backward), self.batch, self.length, self.states)
        return self.u.new_empty(shape, dtype=torch.float32)


def _sum_projection_parts(parts: Tensor, projection: Tensor) -> Tensor:
    """Return the gradient of B or C from its parts."""
    total = torch.empty_like(projection)
    if projection.ndim == 2:
        return total.copy_(_sum_parts(parts).t())
    groups = projection.shape[1] if projection.ndim == 4 else 1
    grouped = parts.unflatten(0, (groups, -1)).sum(1)
    return total.copy_(grouped.permute(1, 0, 3, 2).reshape(projection.shape))


def _sum_parts(parts: Tensor) -> Tensor:
    """Sum parts over batch and chunks in float64.

    Sums in float32 lost two digits over many chunks.
    """
    return parts.sum((0, 1), dtype=torch.float64)


def _to_signal(tensor: Tensor | None) -> Any:
    return None if tensor is None else _kernels().Signal(tensor, *tensor.stride())


def _kernels() -> ModuleType:
    from uumamba.ops import triton_kernels

    return triton_kernels
