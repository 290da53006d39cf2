"""What a scan shows beside empty space, found without an array of its size."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.chunks import spans
from uumamba.data.geometry import Box
from uumamba.runtime.errors import CaseError
from uumamba.types import LabelMap


def stored_by_planes(oriented: NDArray[Any]) -> NDArray[Any]:
    """An array whose planes lie together in memory: itself where they do, forwards or backwards, else a copy.

    Reading some planes of another would walk through the whole of its memory.
    """
    strides = [abs(stride) for stride in oriented.strides]
    return oriented if strides == sorted(strides, reverse=True) else np.ascontiguousarray(oriented)


def box_of_content(image: NDArray[Any], label: LabelMap | None, *, denser_than: float | None, case_id: str) -> Box:
    """The smallest box around what is denser than a value (not 0, where that is None), and around every structure.

    Raises:
        CaseError: there is no content, or the image holds NaN or infinity.
    """
    filled = [np.zeros(size, dtype=np.bool_) for size in image.shape]
    for first, last in spans(len(image), image[0].size):
        planes = image[first:last]
        if planes.dtype.kind == "f" and not np.isfinite(planes).all():
            raise CaseError(case_id, "the image holds NaN or infinite voxels", "repair or leave out the scan")
        _mark(filled, planes != 0 if denser_than is None else planes > denser_than, first, last)
    if not filled[0].any():
        found = "every voxel of the image is 0" if denser_than is None else "the image shows air alone"
        raise CaseError(case_id, found, "restore or leave out the scan")
    if label is not None:
        for first, last in spans(len(label), label[0].size):
            _mark(filled, label[first:last] != 0, first, last)
    z, y, x = (np.flatnonzero(each) for each in filled)
    return (int(z[0]), int(y[0]), int(x[0])), (int(z[-1]) + 1, int(y[-1]) + 1, int(x[-1]) + 1)


def _mark(filled: list[NDArray[np.bool_]], content: NDArray[np.bool_], first: int, last: int) -> None:
    """Mark along each axis where planes ``[first, last)`` have content."""
    filled[0][first:last] |= content.any(axis=(1, 2))
    shadow: NDArray[np.bool_] = np.any(content, axis=0)
    filled[1] |= shadow.any(axis=1)
    filled[2] |= shadow.any(axis=0)
