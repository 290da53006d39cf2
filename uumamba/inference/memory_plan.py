"""Division of a prediction into parts, for a limit of memory."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

GB = 1e9
DEFAULT_LIMIT_GB = 4.0
"""Limit without a choice of the user.

It is fixed, not a share of the free memory, so that predictions are alike on every machine, and jobs can run side by
side. Only a 3-D network of many classes on large planes needs more time than with a larger limit.
"""
PROCESS_BYTES = 600e6
"""Usual size of a process without the image, for a plan that does not depend on what else the process holds."""
_FLOAT_BYTES = 4
_COPIES_OF_OUTPUTS = 4
"""Logits, probabilities, their sum over networks and mirrors, and the weighted ones."""
_COPIES_OF_FEATURES = 6
"""Feature maps of a U-Net's first level that are in memory at the same time."""
_COPIES_OF_PLANES = 4
"""Resampled planes of all classes that are in memory at the same time."""
_RESERVE = 100e6
"""Bytes for planes that are read, and for everything smaller."""


@dataclass(frozen=True)
class MemoryPlan:
    """Division of a prediction.

    Attributes:
        strips: number of strips of rows, predicted one after the other; windows on the border of two are repeated.
        windows: windows for each call of a network.
        bytes_needed: estimated size of the process.
    """

    strips: int
    windows: int
    bytes_needed: float


def plan_memory(
    limit_bytes: float,
    *,
    resident_bytes: float,
    label_shape: Sequence[int],
    size: Sequence[int],
    roi_size: Sequence[int],
    classes: int,
    features: int,
    windows: int,
) -> MemoryPlan:
    """Choose the fewest parts that keep to a limit of memory.

    Fewer windows at a time cost little time, so they are reduced first.

    Args:
        limit_bytes: size of the process that is allowed.
        resident_bytes: size of the process with the image in memory.
        label_shape: shape of the label map.
        size: spatial size of the prepared image.
        roi_size: size of the window, in all axes or in all but the first.
        classes: number of the network's outputs.
        features: number of the network's feature maps at full resolution.
        windows: most windows for each call of a network.

    Returns:
        The plan; the finest one if none keeps to the limit.

    Example:
        >>> size = (600, 512, 512)
        >>> options = dict(resident_bytes=7e8, label_shape=size, size=size, classes=24, features=8, windows=4)
        >>> plan = plan_memory(1.2e9, roi_size=(64, 64), **options)
        >>> plan.strips, plan.windows
        (1, 4)
        >>> plan = plan_memory(1.2e9, roi_size=(32, 64, 64), **options)
        >>> plan.strips, plan.windows
        (8, 1)
    """
    roi = (1, *roi_size) if len(roi_size) < len(size) else tuple(roi_size)
    depth, (rows, *rest) = roi[0], [max(window, length) for window, length in zip(roi, size, strict=True)][1:] or [1]
    row_bytes = _FLOAT_BYTES * (classes + 1) * depth * math.prod(rest)
    maps = _COPIES_OF_OUTPUTS * classes + _COPIES_OF_FEATURES * features
    window_bytes = _FLOAT_BYTES * maps * math.prod(roi)
    voxels = math.prod(label_shape)
    plane_bytes = _FLOAT_BYTES * classes * voxels / max(1, min(label_shape))  # of the largest planes
    fixed = resident_bytes + voxels + _COPIES_OF_PLANES * plane_bytes + _RESERVE
    most_strips = max(1, rows // roi[1]) if len(roi) > 1 else 1

    def needs(strips: int, count: int) -> float:
        return fixed + row_bytes * -(-rows // strips) + window_bytes * count

    # A single window is the last resort: oneDNN computes it by other kernels than two or four.
    pair = min(windows, 2)
    plans = [(1, windows), *((strips, pair) for strips in range(1, most_strips + 1)), (most_strips, 1)]
    strips, count = next((plan for plan in plans if needs(*plan) <= limit_bytes), plans[-1])
    return MemoryPlan(strips, count, needs(strips, count))


def count_features(net: nn.Module) -> int:
    """Return the number of a network's feature maps at full resolution.

    They are those of its first convolution.

    Example:
        >>> count_features(nn.Sequential(nn.Conv2d(1, 32, 3), nn.Conv2d(32, 4, 1)))
        32
    """
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return next((module.out_channels for module in net.modules() if isinstance(module, kinds)), 1)
