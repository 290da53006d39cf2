"""Slabs of large logits, to avoid copies of all channels."""

from math import prod

from torch import Tensor

Slab = tuple[slice, slice, slice]
# Values of a slab on a CPU: 1 MB in float32, which fits into the cache.
SLAB_VALUES = 2**18
# Values of a slab on an accelerator: larger, because each slab needs kernel launches.
ACCELERATOR_SLAB_VALUES = 2**22


def slab_values(logits: Tensor) -> int:
    """Return the number of values of a slab on the logits' device."""
    return SLAB_VALUES if logits.device.type == "cpu" else ACCELERATOR_SLAB_VALUES


def is_large(logits: Tensor) -> bool:
    """Return whether logits have more than four slabs.

    Smaller logits are processed by torch's operators without slabs.
    """
    return logits.numel() > 4 * slab_values(logits)


def slabs(logits: Tensor) -> list[Slab]:
    """Return indices ``(batch, channel, first spatial axis)`` of all slabs.

    The indices are valid for any tensor of this batch and grid, with any channels. A slab is at least one slice of one
    sample.

    Example:
        >>> import torch
        >>> cut = slabs(torch.empty(2, 24, 96, 128, 128, device="meta"))
        >>> len(cut), cut[1]
        (20, (slice(0, 1, None), slice(None, None, None), slice(10, 20, None)))
    """
    batch, classes, length, *rest = logits.shape
    values = slab_values(logits)
    slice_values = max(1, classes * prod(rest))
    thickness = min(length, max(1, values // slice_values))
    samples = max(1, values // (slice_values * length)) if thickness == length else 1
    return [
        (slice(sample, min(sample + samples, batch)), slice(None), slice(first, min(first + thickness, length)))
        for sample in range(0, batch, samples)
        for first in range(0, length, thickness)
    ]
