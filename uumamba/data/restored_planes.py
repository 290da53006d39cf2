"""Restoring of network outputs to the native grid, plane after plane."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from uumamba.data.geometry import Geometry
from uumamba.data.grid import Image
from uumamba.data.resample import find_largest, find_strips, resample_planes
from uumamba.runtime.errors import require
from uumamba.runtime.painting import paint_regions
from uumamba.types import LabelMap

MOST_CLASSES = 256
PredictRows = Callable[[tuple[int, int] | None], Iterator[Image]]
"""``predict(rows)`` yields the prepared planes ``(K, rows, X)``, each valid until the next one; None for all rows."""
Place = tuple[int, slice, slice]
StoreMap = Callable[[int, Place, Image], None]
"""``store(k, place, values)`` gets rows of a plane of a class's map, and their place in the oriented grid."""
OpenStore = Callable[[Geometry, int], StoreMap]
"""``open(geometry, K)`` is called before the first part, and again if prediction starts again."""


def restore_planes(
    predict: PredictRows,
    geometry: Geometry,
    *,
    strips: int = 1,
    painted: Sequence[int] | None = None,
    probabilities: bool | OpenStore = False,
) -> tuple[LabelMap, Image | None]:
    """Find each native voxel's label while its probabilities are predicted.

    The label map is that of :func:`uumamba.data.preprocess.restore`, bit for bit, but memory holds a few planes of the
    probabilities instead of all.

    Args:
        predict: prediction of some rows of the prepared grid; called once for each strip.
        geometry: geometry of the prepared image.
        strips: number of strips of rows that are predicted one after the other.
        painted: class that each region paints; None for classes.
        probabilities: True returns the probabilities ``(K, *native)`` of
            :func:`uumamba.data.preprocess.restore_probabilities`; a function gets them in parts inside the crop.

    Raises:
        UsageError: there are over 256 classes.
    """
    old, new = geometry.prepared_shape, geometry.cropped_shape
    native = np.zeros(geometry.native_shape, dtype=np.uint8)
    label, put = geometry.orient(native)[geometry.crop], None
    kept = ProbabilityArray(has_background=painted is None) if probabilities is True else None
    store = kept.open if kept is not None else probabilities
    for strip in find_strips(old, new, strips):
        planes = predict(None if strip.old == (0, old[1]) else strip.old)
        for z, (count, maps) in enumerate(resample_planes(planes, old, new, strip)):
            require(count <= MOST_CLASSES, "probabilities", got=f"{count} classes", expected=f"at most {MOST_CLASSES}")
            if callable(store):
                put = put or store(geometry, count)
                maps = _store_each(maps, put, _find_place(geometry, z, strip.new))
            label[z, slice(*strip.new)] = find_largest(maps) if painted is None else paint_regions(maps, painted)
    return native, None if kept is None else kept.finish()


class ProbabilityArray:
    """Probabilities in memory, on the native grid.

    Outside the crop the probability of background (class 0) is 1; without background, all probabilities are 0.

    Args:
        has_background: the first map is background.
    """

    def __init__(self, *, has_background: bool = True) -> None:
        self._has_background = has_background
        self._native: Image | None = None

    def open(self, geometry: Geometry, count: int) -> StoreMap:
        """Allocate the array of a prediction."""
        native = np.zeros((count, *geometry.native_shape), dtype=np.float32)
        native[0] = 1.0 if self._has_background else 0.0
        oriented, self._native = geometry.orient(native), native

        def put(k: int, place: Place, values: Image) -> None:
            oriented[(k, *place)] = values

        return put

    def finish(self) -> Image:
        """Return the probabilities ``(K, *native)``."""
        assert self._native is not None
        return self._native


def _find_place(geometry: Geometry, z: int, rows: tuple[int, int]) -> Place:
    first_z, first_y, first_x = geometry.crop_start
    return first_z + z, slice(first_y + rows[0], first_y + rows[1]), slice(first_x, geometry.crop_stop[2])


def _store_each(maps: Iterator[Image], put: StoreMap, place: Place) -> Iterator[Image]:
    for k, values in enumerate(maps):
        put(k, place, values)
        yield values
