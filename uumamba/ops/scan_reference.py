"""Reference of the selective scan: its formula, one step after the other, slow and obvious."""

import torch
import torch.nn.functional as F
from torch import Tensor

from uumamba.ops.scan_arguments import ScanArguments


def reference_scan(scan: ScanArguments) -> tuple[Tensor, Tensor]:
    """Return ``(y, last_state)`` by a loop; tensors are unbound first, so that backward is linear too."""
    u, delta, A = (tensor.to(scan.arithmetic_dtype) for tensor in (scan.u, scan.delta, scan.A))
    B, C = (_every_channel(tensor.to(scan.arithmetic_dtype), u) for tensor in (scan.B, scan.C))
    if scan.delta_bias is not None:
        delta = delta + scan.delta_bias[:, None]
    if scan.delta_softplus:
        delta = F.softplus(delta)

    state = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for u_t, delta_t, B_t, C_t in zip(u.unbind(-1), delta.unbind(-1), B.unbind(-1), C.unbind(-1), strict=True):
        state = torch.exp(delta_t[..., None] * A) * state + (delta_t * u_t)[..., None] * B_t
        outputs.append((C_t * state).sum(-1))
    y = torch.stack(outputs, dim=-1)

    if scan.D is not None:
        y = y + scan.D[:, None] * u
    if scan.z is not None:
        y = y * F.silu(scan.z.to(y.dtype))
    return y.to(scan.u.dtype), state


def _every_channel(projection: Tensor, u: Tensor) -> Tensor:
    """Return B or C in any form as ``(batch, channels, states, length)``."""
    batch, channels, length = u.shape
    if projection.ndim == 2:
        return projection[None, :, :, None].expand(batch, -1, -1, length)
    if projection.ndim == 3:
        return projection[:, None].expand(-1, channels, -1, -1)
    return projection.repeat_interleave(channels // projection.shape[1], dim=1)
