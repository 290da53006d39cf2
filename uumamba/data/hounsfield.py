"""Computed tomography: Hounsfield units, and their known faults undone.

Air is -1024 HU (some scanners write -1000), water 0. Outside the round field of view scanners write padding far below
air; some exports lack the intercept, so that air is 0 and water 1024.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.chunks import chunks
from uumamba.data.warn import warn_repaired
from uumamba.runtime.errors import CaseError

AIR_HU = -1024
DENSE_HU = -500
"""Midway between air or lung and soft tissue: what is denser belongs to the patient, or to the table."""

_SHIFT_HU = 1024
_TISSUE_HU = 150  # blood, muscle, fat and water lie this close to 0
_PADDING_HU = -1500
_MOST_NEGATIVE = 0.001
_LEAST_TISSUE = 0.05


@dataclass(frozen=True)
class CtStatistics:
    """Hounsfield units over a data set's foreground, for a normalisation that is the same for every scan.

    Raises:
        ValueError: the limits do not rise, or the standard deviation is not positive.
    """

    low_hu: float
    high_hu: float
    mean_hu: float
    std_hu: float

    def __post_init__(self) -> None:
        if not (self.low_hu < self.high_hu and self.std_hu > 0):
            raise ValueError(f"CT statistics need low_hu < high_hu and a positive std_hu, got {self}.")


def find_shift(scan: NDArray[Any], *, case_id: str) -> int:
    """What to add to a scan's values to make them Hounsfield units, with a warning where that is not 0.

    Values are taken to lie 1024 too high where next to none is negative (a true scan has air, lung or fat) and one in
    twenty is within 150 of 1024, as soft tissue would be; so much dense bone is in no scan that has neither fat nor
    air. Padding counts as neither, and is warned of: :func:`to_hounsfield` makes it air.

    Raises:
        CaseError: every voxel has the same value.
    """
    lowest, highest = float(scan.min()), float(scan.max())
    if lowest == highest:
        raise CaseError(case_id, f"the image is constant ({lowest:g})", "leave out the scan")
    low, high = _SHIFT_HU - _TISSUE_HU, _SHIFT_HU + _TISSUE_HU
    inside = negative = tissue = 0
    for part in chunks(scan):
        padding = int(np.count_nonzero(part < AIR_HU))
        inside += part.size - padding
        negative += int(np.count_nonzero(part < 0)) - padding
        tissue += int(np.count_nonzero((part >= low) & (part <= high)))
    shifted = inside > 0 and negative <= _MOST_NEGATIVE * inside and tissue >= _LEAST_TISSUE * inside
    shift = -_SHIFT_HU if shifted else 0
    if shift:
        warn_repaired(case_id, "its values lie 1024 above Hounsfield units (soft tissue at 1024); 1024 is subtracted")
    if lowest + shift < _PADDING_HU:
        warn_repaired(case_id, f"its padding of {lowest + shift:g} HU, below any air, is set to {AIR_HU:g}")
    return shift


def to_hounsfield(values: NDArray[Any], shift: int) -> NDArray[np.float32]:
    """Values as Hounsfield units, float32, none below air."""
    hounsfield = values.astype(np.float32)
    if shift != 0:
        hounsfield += np.float32(shift)
    return np.maximum(hounsfield, np.float32(AIR_HU), out=hounsfield)
