"""Where structures lie: some voxels of each, for patches that shall see them."""

import numpy as np
from numpy.typing import NDArray

from uumamba.data.draw import draw_ordinals, drawn_in_planes
from uumamba.runtime.seeds import generator_for
from uumamba.types import LabelMap

LOCATIONS_PER_CLASS = 2000


def count_values(label: LabelMap) -> NDArray[np.int64]:
    """How many voxels of each plane have each value, ``(Z, 256)``.

    Example:
        >>> count_values(np.array([[[0, 3]], [[3, 3]]], dtype=np.uint8))[:, 3].tolist()
        [1, 2]
    """
    return np.stack([np.bincount(plane.ravel(), minlength=256) for plane in label])


def sample_locations(label: LabelMap, *, case_id: str, counts: NDArray[np.int64] | None = None) -> NDArray[np.int32]:
    """At most 2000 voxels of each foreground class, rows ``(class, z, y, x)``, the same for the same case.

    Args:
        label: looked at plane by plane, so that it can lie on disk.
        case_id: what the draw depends on.
        counts: :func:`count_values`'s, where they are known.

    Example:
        >>> sample_locations(np.array([[[0, 3]]], dtype=np.uint8), case_id="a").tolist()
        [[3, 0, 0, 1]]
    """
    counts = count_values(label) if counts is None else counts
    rows = [np.empty((0, 4), dtype=np.int32)]
    for value in np.flatnonzero(counts[:, 1:].any(axis=0)) + 1:
        total, generator = int(counts[:, value].sum()), generator_for(case_id, "locations", int(value))
        ordinals = draw_ordinals(total, LOCATIONS_PER_CLASS, generator)
        for plane, within in drawn_in_planes(counts[:, value], ordinals):
            y, x = np.divmod(np.flatnonzero(label[plane] == value)[within], label.shape[2])
            position = (np.full(len(within), value), np.full(len(within), plane), y, x)
            rows.append(np.stack(position, axis=1).astype(np.int32))
    return np.concatenate(rows)
