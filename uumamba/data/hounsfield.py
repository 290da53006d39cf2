"""Hounsfield units of CT scans, with known faults of exports undone.

Air is -1024 HU (some scanners write -1000), water 0. Outside the round field of view scanners write padding far below
air; some exports lack the intercept, so that air is 0 and water 1024.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.chunks import chunks
from uumamba.data.warn import warn_repaired
from uumamba.runtime.errors import require_case

AIR_HU = -1024
DENSE_HU = -500
"""Midway between air or lung and soft tissue: what is denser belongs to the patient, or to the table."""

_SHIFT_HU = 1024
_TISSUE_HU = 150  # blood, muscle, fat and water lie this close to 0
_PADDING_HU = -1500
_MOST_NEGATIVE = 0.001
_LEAST_TISSUE = 0.05


def find_shift(scan: NDArray[Any], *, case_id: str) -> int:
    """Find the offset that makes a scan's values Hounsfield units; warn where it is not 0.

    Values count as 1024 too high where next to none is negative (a true scan has air, lung or fat) and one in
    twenty is within 150 of 1024, as soft tissue would be; so much dense bone is in no scan that has neither fat nor
    air. Padding counts as neither, and is warned of: :func:`to_hounsfield` makes it air.

    Raises:
        CaseError: every voxel has the same value.
    """
    lowest, highest = float(scan.min()), float(scan.max())
    expected, fix = "more than one value", "leave out the scan"
    require_case(lowest != highest, case_id, "image", got=lowest, expected=expected, fix=fix)
    inside = negative = tissue = 0
    for part in chunks(scan):
        padding = int(np.count_nonzero(part < AIR_HU))
        inside += part.size - padding
        negative += int(np.count_nonzero(part < 0)) - padding
        tissue += int(np.count_nonzero((part >= _SHIFT_HU - _TISSUE_HU) & (part <= _SHIFT_HU + _TISSUE_HU)))
    is_shifted = inside > 0 and negative <= _MOST_NEGATIVE * inside and tissue >= _LEAST_TISSUE * inside
    shift = -_SHIFT_HU if is_shifted else 0
    if shift:
        warn_repaired(case_id, "its values are 1024 above Hounsfield units (soft tissue at 1024); 1024 is subtracted")
    if lowest + shift < _PADDING_HU:
        warn_repaired(case_id, f"its padding of {lowest + shift:g} HU, below any air, is set to {AIR_HU:g}")
    return shift


def to_hounsfield(values: NDArray[Any], shift: int) -> NDArray[np.float32]:
    """Convert values to Hounsfield units, float32, none below air."""
    hounsfield = values.astype(np.float32)
    if shift != 0:
        hounsfield += np.float32(shift)
    return np.maximum(hounsfield, np.float32(AIR_HU), out=hounsfield)
