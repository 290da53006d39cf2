"""Slabs of large logits, so that no loss copies all channels at once."""

from math import prod

from torch import Tensor

SLAB_VALUES = 2**18
"""Values of a slab on a CPU: 1 MB in float32, which fits the cache, so slabs are as fast as the whole."""

ACCELERATOR_SLAB_VALUES = 2**22
"""Values of a slab on an accelerator, where each slab costs kernel launches."""

Slab = tuple[slice, slice, slice]


def slab_values(logits: Tensor) -> int:
    """Return the values of a slab on the logits' device."""
    return SLAB_VALUES if logits.device.type == "cpu" else ACCELERATOR_SLAB_VALUES


def is_large(logits: Tensor) -> bool:
    """Whether logits have more than four slabs; smaller logits go through torch's operators as a whole."""
    return logits.numel() > 4 * slab_values(logits)


def slabs(logits: Tensor) -> list[Slab]:
    """Return indices ``(batch, channel, first spatial axis)`` that cut logits into slabs.

    They apply to any tensor of that batch and grid, whatever its channels. A slab is at least one slice of one sample.

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
