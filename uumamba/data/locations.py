"""Random voxels of structures, drawn plane by plane."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uumamba.runtime.seeds import generator_for
from uumamba.types import LabelMap, Mask

LOCATIONS_PER_CLASS = 2000


def count_values(label: LabelMap) -> NDArray[np.int64]:
    """Count the voxels of each value in each plane, ``(Z, 256)``.

    Example:
        >>> count_values(np.array([[[0, 3]], [[3, 3]]], dtype=np.uint8))[:, 3].tolist()
        [1, 2]
    """
    return np.stack([np.bincount(plane.ravel(), minlength=256) for plane in label])


def find_foreground(label: NDArray[Any], ignored: int | None) -> Mask:
    """Find the voxels of structures; ignored ones are none.

    Example:
        >>> find_foreground(np.array([0, 1, 255]), 255).tolist()
        [False, True, False]
    """
    return label != 0 if ignored is None else (label != 0) & (label != ignored)


def sample_locations(
    label: LabelMap, *, case_id: str, counts: NDArray[np.int64] | None = None, ignore_label: int | None = None
) -> NDArray[np.int32]:
    """Draw at most 2000 voxels of each foreground class.

    Rows are ``(class, z, y, x)``. The same case always gives the same rows. With ``ignore_label``, voxels of background
    (class 0) are drawn as well, for patches around annotated voxels.

    Args:
        label: label map, read plane by plane, so that it can stay on disk.
        case_id: key of the draw.
        counts: result of :func:`count_values`, if known.
        ignore_label: class of ignored voxels, which are not drawn; None if there are none.

    Example:
        >>> sample_locations(np.array([[[0, 3]]], dtype=np.uint8), case_id="a").tolist()
        [[3, 0, 0, 1]]
        >>> sample_locations(np.array([[[0, 3, 255]]], dtype=np.uint8), case_id="a", ignore_label=255).tolist()
        [[0, 0, 0, 0], [3, 0, 0, 1]]
    """
    counts = count_values(label) if counts is None else counts
    rows = [np.empty((0, 4), dtype=np.int32)]
    left_out = 0 if ignore_label is None else ignore_label
    for value in (each for each in np.flatnonzero(counts.any(axis=0)) if each != left_out):
        generator = generator_for(case_id, "locations", int(value))
        for plane, within in draw_in_planes(counts[:, value], LOCATIONS_PER_CLASS, generator):
            y, x = np.divmod(np.flatnonzero(label[plane] == value)[within], label.shape[2])
            rows.append(np.stack([np.full_like(y, value), np.full_like(y, plane), y, x], axis=1).astype(np.int32))
    return np.concatenate(rows)


def draw_in_planes(
    counts: Sequence[int] | NDArray[np.int64], wanted: int, generator: torch.Generator
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Draw voxels uniformly, without a list of all voxels.

    Yields ``(plane, ordinals within the plane)``, both in ascending order.

    Args:
        counts: number of candidate voxels in each plane.
        wanted: number of voxels to draw; fewer candidates are all taken.
        generator: used once, if there are more candidates than ``wanted``.

    Example:
        >>> planes = draw_in_planes([3, 0, 2], 9, torch.Generator())
        >>> [(plane, ordinals.tolist()) for plane, ordinals in planes]
        [(0, [0, 1, 2]), (2, [0, 1])]
    """
    ends = np.cumsum(counts)
    total = int(ends[-1])
    drawn = np.arange(min(total, wanted))
    if total > wanted:
        drawn = np.sort(torch.randperm(total, generator=generator)[:wanted].numpy())
    for plane, (count, end) in enumerate(zip(counts, ends, strict=True)):
        within = drawn[(drawn >= end - count) & (drawn < end)] - (end - count)
        if len(within):
            yield plane, within
