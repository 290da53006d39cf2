"""Selective scan in plain torch, on any device.

The scan runs in chunks and can be differentiated any number of times.
"""

from collections.abc import Iterator
from math import ceil, gcd, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from uumamba.ops.function_transforms import is_transformed
from uumamba.ops.linear_recurrence import linear_recurrence
from uumamba.ops.scan_arguments import ScanArguments, channels_per_group
from uumamba.ops.scan_reference import apply_skip_and_gate, prepare_inputs, require_fixed_length

# Elements (length x states x channels x rows of the batch) of one block. About eight arrays of this size exist at a
# time. 2**22 and 2**23 took 2.2 and 1.4 s of CPU time, forward and backward, at length 57344 with 64 channels.
_BLOCK_ELEMENTS = 2**23
# With fewer elements per step, the overhead of an operator exceeds its arithmetic, and more chunks are faster.
_STEP_ELEMENTS = 2**15


def torch_scan(scan: ScanArguments) -> tuple[Tensor, Tensor]:
    """Return ``(y, last_state)``, computed in blocks of batch rows and channels.

    Under autograd a block stores only its inputs, and the backward pass computes the block again. So memory grows with
    the inputs and not with ``channels x states x length``. Transforms of ``torch.func`` and forward mode do not
    recompute.

    Raises:
        UsageError: a graph with a dynamic length is exported, as the graph has operators for each step of a chunk.
    """
    require_fixed_length(scan)
    u, delta, A, B, C = prepare_inputs(scan)
    batch, channels, length = u.shape
    shared = gcd(channels_per_group(B, channels), channels_per_group(C, channels))
    width = min(shared, max(1, _BLOCK_ELEMENTS // (length * A.shape[1])))
    height = max(1, _BLOCK_ELEMENTS // (length * A.shape[1] * width))
    tensors = (u, delta, A, B, C)
    recomputes = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    recomputes = recomputes and not (is_transformed(tensors) or torch.compiler.is_exporting())
    one_band = torch.onnx.is_in_onnx_export() or isinstance(batch, torch.SymInt)

    bands = []
    # An exported graph must not depend on the batch size, so its batch is one block.
    for rows in [slice(None)] if one_band else _slices(0, batch, height):
        blocks = []
        for group in range(0, channels, shared):
            for columns in _slices(group, group + shared, width):
                B_part, C_part = (_select_projection(tensor, rows, columns, channels) for tensor in (B, C))
                part = (u[rows, columns], delta[rows, columns], A[columns], B_part, C_part)
                if recomputes:
                    blocks.append(checkpoint(_scan_block, *part, use_reentrant=False, preserve_rng_state=False))
                else:
                    blocks.append(_scan_block(*part))
        bands.append([torch.cat(parts, dim=1) for parts in zip(*blocks, strict=True)])
    y, last_state = (torch.cat(parts) for parts in zip(*bands, strict=True))
    return apply_skip_and_gate(scan, y, u), last_state


def _scan_block(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Compute a block of channels that share ``B`` and ``C``.

    B and C are ``(batch, states, length)`` or ``(channels, states)``. The axes of the recurrence are (steps, chunks,
    batch, states, channels), with channels last, so that each row is one long vector.
    """
    batch, channels, length = u.shape
    rows = 1 if torch.onnx.is_in_onnx_export() or isinstance(batch, torch.SymInt) else batch
    steps, chunks = _chunking(length, row=rows * A.numel())
    # Padding has delta = 0: decay 1 and input 0, so that the state does not change to the end of the last chunk.
    decay_rate, drive = (_time_major(tensor, steps, chunks).unsqueeze(-2) for tensor in (delta, delta * u))
    B, C = (tensor.t() if tensor.ndim == 2 else _time_major(tensor, steps, chunks).unsqueeze(-1) for tensor in (B, C))
    states = linear_recurrence(torch.exp(decay_rate * A.t()), drive * B)
    y = (states * C).sum(-2)
    y = y.permute(2, 3, 1, 0).reshape(batch, channels, -1)[..., :length]
    return y, states[-1, -1].transpose(-1, -2)


def _chunking(length: int, *, row: int) -> tuple[int, int]:
    """Return ``(steps, chunks)`` that cover ``length``.

    The recurrence calls 2 steps + chunks operators, or steps operators for a single chunk. Long rows need few chunks.

    Example:
        >>> _chunking(48, row=16), _chunking(48, row=2**15)
        ((4, 12), (48, 1))
    """
    chunks = max(1, min(round(sqrt(3 * length)), ceil(_STEP_ELEMENTS / row)))
    steps = ceil(length / chunks)
    return steps, ceil(length / steps)


def _time_major(tensor: Tensor, steps: int, chunks: int) -> Tensor:
    """Reorder ``(batch, axis, length)`` as ``(steps, chunks, batch, axis)``, padded with zeros."""
    padded = F.pad(tensor, (0, steps * chunks - tensor.shape[-1]))
    return padded.unflatten(-1, (chunks, steps)).permute(3, 2, 0, 1).contiguous()


def _select_projection(tensor: Tensor, rows: slice, columns: slice, channels: int) -> Tensor:
    """Return the part of B or C for a block of channels."""
    if tensor.ndim == 2:
        return tensor[columns]
    if tensor.ndim == 3:
        return tensor[rows]
    return tensor[rows, columns.start // channels_per_group(tensor, channels)]


def _slices(start: int, stop: int, width: int) -> Iterator[slice]:
    return (slice(first, min(first + width, stop)) for first in range(start, stop, width))
