"""The selective scan in Triton kernels, for CUDA: split along the length, or in one pass for short inputs.

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

# The kernels save the state before every 16 steps, so 16 states take as much room as u in float32.
SAVED_EVERY = 16
# How short and long a chunk may be. Between, it is as long as leaves 64 programs to a multiprocessor: registers let 8
# to 16 of them run at a time, and four rounds or more have a short tail.
_CHUNK_STEPS = (64, 512)
_PROGRAMS_FOR_EACH = 64
# Up to this length one launch instead of three is worth more than the parallelism of a split.
_ONE_PASS_LENGTH = 512

Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Plan:
    """How a scan is cut into programs.

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
    """Why this backend cannot run here, in one sentence; None when it can."""
    if find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if not torch.cuda.is_available():
        return "triton needs a CUDA device and torch finds none"
    return None


def triton_forward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """``(y, last_state, carries)``; carries are the states before every 16 steps, and empty unless ``keep``.

    ``y`` has the strides that ``torch.empty_like(u)`` gives.
    """
    scan = _Scan(u, delta, A, B, C, delta_bias, delta_softplus)
    y = torch.empty_like(u)
    states = scan.state_rows(scan.chunks + 1)
    carries = scan.state_rows(-(-scan.length // SAVED_EVERY)) if keep else states.new_empty(0)
    inputs = {"u": _signal(u), "delta": _signal(delta), "B": scan.B}
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
) -> Gradients:
    """Gradients of ``u, delta, A, B, C, D, z, delta_bias``, each as ``torch.empty_like`` of it; None where it is."""
    scan = _Scan(u, delta, A, B, C, delta_bias, delta_softplus)
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
    """One pass when that fills the device by itself or the input is short; chunks as long as fill it otherwise.

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
    """What all kernels of one scan share."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> None:
        self.kernels = _kernels()
        self.u = u
        self.batch, self.channels, self.length = u.shape
        self.states = A.shape[1]
        multiprocessors = torch.cuda.get_device_properties(u.device).multi_processor_count if u.is_cuda else 1
        self.plan = _plan(self.batch, self.channels, self.length, multiprocessors)
        self.chunks = -(-self.length // self.plan.chunk_steps)
        self.B, self.C = _projection(B, self.channels), _projection(C, self.channels)
        self.band = gcd(self.B.width, self.C.width)
        self.A = {"A": A, "A_channel": A.stride(0), "A_state": A.stride(1)}
        self.common = {
            **self.A,
            "bias": delta_bias,
            "chunks": self.chunks,
            "band": self.band,
            "channels": self.channels,
            "length": self.length,
            "states": self.states,
            "chunk_steps": self.plan.chunk_steps,
            "zero": 0,
            "SOFTPLUS": delta_softplus,
            "STATES": 1 << (self.states - 1).bit_length(),
        }

    def launch(self, kernel: Any, block: tuple[int, int], **arguments: Any) -> None:
        """Run a kernel of the first or third phase over blocks of so many channels."""
        flags = {f"{name}_FIXED": arguments[name].data.ndim == 2 for name in ("B", "C") if name in arguments}
        blocks = self.blocks(block)
        kernel[(self.batch * self.chunks * blocks,)](
            **self.common, **arguments, **flags, blocks=blocks, OUTER=block[0], INNER=block[1],
            num_warps=self.plan.warps,
        )  # fmt: skip

    def launch_carry(self, rows: Tensor, sums: Tensor, *, reverse: bool) -> None:
        """Run the second phase, which turns each row of states into what it is after all chunks before it."""
        chunks, columns = self.plan.carry
        self.kernels.carry[(-(-self.channels * self.states // columns), self.batch)](
            rows=rows, sums=sums, **self.A, chunks=self.chunks, channels=self.channels, states=self.states,
            REVERSE=reverse, CHUNKS=chunks, COLUMNS=columns, num_warps=self.plan.carry_warps,
        )  # fmt: skip

    def blocks(self, block: tuple[int, int]) -> int:
        """How many blocks of channels there are, none of which reaches beyond its band."""
        return self.channels // self.band * -(-self.band // (block[0] * block[1]))

    def state_rows(self, count: int) -> Tensor:
        """Room for so many states of every channel."""
        return self.u.new_empty((self.batch, count, self.states, self.channels), dtype=torch.float32)

    def channel_rows(self, count: int) -> Tensor:
        """Room for so many numbers of every channel."""
        return self.u.new_empty((self.batch, count, self.channels), dtype=torch.float32)

    def projection_parts(self, projection: Tensor) -> Tensor:
        """Room for the parts whose sum is the gradient of B or C."""
        if projection.ndim == 2:
            return self.state_rows(self.chunks)
        shape = (self.blocks(self.plan.backward), self.batch, self.length, self.states)
        return self.u.new_empty(shape, dtype=torch.float32)

    def projection_total(self, parts: Tensor, projection: Tensor) -> Tensor:
        """The gradient of B or C from its parts."""
        total = torch.empty_like(projection)
        if projection.ndim == 2:
            return total.copy_(_total(parts).t())
        groups = projection.shape[1] if projection.ndim == 4 else 1
        grouped = parts.unflatten(0, (groups, -1)).sum(1)
        return total.copy_(grouped.permute(1, 0, 3, 2).reshape(projection.shape))


def _total(parts: Tensor) -> Tensor:
    """Parts summed over batch and chunks; float64, since float32 lost two digits over many chunks."""
    return parts.sum((0, 1), dtype=torch.float64)


def _signal(tensor: Tensor | None) -> Any:
    return None if tensor is None else _kernels().Signal(tensor, *tensor.stride())


def _projection(tensor: Tensor, channels: int) -> Any:
    if tensor.ndim == 2:
        batch, group, state, step, width = 0, tensor.stride(0), tensor.stride(1), 0, channels
    elif tensor.ndim == 3:
        (batch, state, step), group, width = tensor.stride(), 0, channels
    else:
        (batch, group, state, step), width = tensor.stride(), channels // tensor.shape[1]
    return _kernels().Projection(tensor, batch, group, state, step, width)


def _kernels() -> ModuleType:
    from uumamba.ops import triton_kernels

    return triton_kernels
