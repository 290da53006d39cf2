"""Reference of the selective scan: the formula in a loop over positions."""

import torch
import torch.nn.functional as F
from torch import Tensor

from uumamba.ops.scan_arguments import ScanArguments
from uumamba.runtime.errors import require


def reference_scan(scan: ScanArguments) -> tuple[Tensor, Tensor]:
    """Return ``(y, last_state)``, computed position by position.

    Tensors are unbound before the loop, so the time of the backward pass is also linear in the length.

    Raises:
        UsageError: a graph with a dynamic length is exported.
    """
    require_fixed_length(scan)
    u, delta, A, B, C = prepare_inputs(scan)
    B, C = (_expand_channels(tensor, u) for tensor in (B, C))
    state = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for u_t, delta_t, B_t, C_t in zip(u.unbind(-1), delta.unbind(-1), B.unbind(-1), C.unbind(-1), strict=True):
        state = torch.exp(delta_t[..., None] * A) * state + (delta_t * u_t)[..., None] * B_t
        outputs.append((C_t * state).sum(-1))
    return apply_skip_and_gate(scan, torch.stack(outputs, dim=-1), u), state


def require_fixed_length(scan: ScanArguments) -> None:
    """Raise if a graph with a dynamic length is exported.

    Loops would fix the length.
    """
    require(
        not (torch.compiler.is_exporting() and isinstance(scan.u.shape[2], torch.SymInt)),
        "backend",
        got="a dynamic length in torch.export",
        expected="a fixed length for torch operators",
        fix='export in float32 with backend="native" (CPU) or "triton" (CUDA), or with a fixed length',
    )


def prepare_inputs(scan: ScanArguments) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return u, step sizes after bias and softplus, A, B and C.

    All have the type of the arithmetic.
    """
    u, delta, A, B, C = (tensor.to(scan.arithmetic_dtype) for tensor in (scan.u, scan.delta, scan.A, scan.B, scan.C))
    if scan.delta_bias is not None:
        delta = delta + scan.delta_bias.to(delta.dtype)[:, None]
    if scan.delta_softplus:
        delta = F.softplus(delta)
    return u, delta, A, B, C


def apply_skip_and_gate(scan: ScanArguments, y: Tensor, u: Tensor) -> Tensor:
    """Return ``(y + D u) silu(z)`` in the type of ``scan.u``."""
    if scan.D is not None:
        y = y + scan.D.to(y.dtype)[:, None] * u
    if scan.z is not None:
        y = y * F.silu(scan.z.to(y.dtype))
    return y.to(scan.u.dtype)


def _expand_channels(projection: Tensor, u: Tensor) -> Tensor:
    """Return B or C in any form as ``(batch, channels, states, length)``."""
    batch, channels, length = u.shape
    if projection.ndim == 2:
        return projection[None, :, :, None].expand(batch, -1, -1, length)
    if projection.ndim == 3:
        return projection[:, None].expand(-1, channels, -1, -1)
    return projection.repeat_interleave(channels // projection.shape[1], dim=1)
