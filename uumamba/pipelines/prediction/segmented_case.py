"""A scan, or a cine, with its predicted label maps."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from uumamba.data.chunks import chunks
from uumamba.data.label_scheme import number_classes
from uumamba.data.scan import Scan
from uumamba.types import LabelMap

MOST_SHOWN = 4


@dataclass(frozen=True)
class SegmentedCase:
    """A scan or a cine with its label maps.

    Attributes:
        case_id: name of the case.
        frames: the scan, or all frames of a cine on one grid.
        labels: label map of each frame, of classes as in :func:`uumamba.data.label_scheme.number_classes`.
        structures: value of each structure in files.
        phases: index of the frame of each known phase, ED and ES.
        warnings: sentences about the input for the user.
        patient_id: the patient, if known.
        times_ms: time of each frame of a cine, if known.
    """

    case_id: str
    frames: tuple[Scan, ...]
    labels: tuple[LabelMap, ...]
    structures: Mapping[str, int]
    phases: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    patient_id: str | None = None
    times_ms: tuple[float, ...] | None = None

    def measure_volumes_ml(self) -> list[dict[str, float]]:
        """Compute the volume of each structure in each frame."""
        voxel_ml = float(np.prod(self.frames[0].spacing_mm)) / 1000
        classes = number_classes(self.structures)
        # In pieces, because bincount converts its input to eight bytes a voxel.
        counts = [np.sum([np.bincount(part, minlength=256) for part in chunks(each)], axis=0) for each in self.labels]
        return [{name: voxel_ml * int(count[value]) for name, value in classes.items()} for count in counts]


class UnusualCaseWarning(UserWarning):
    """Warning of a scan or label map unlike the training data."""


def warn_of_remarks(case: SegmentedCase, remarks: Sequence[str]) -> SegmentedCase:
    """Warn of what is unusual about a case, and note it."""
    if remarks:
        shown = "; ".join(remarks[:MOST_SHOWN]) + ("; ..." if len(remarks) > MOST_SHOWN else "")
        text = f"{case.case_id} is unlike the training data: {shown}. Check scan and label map."
        warnings.warn(text, UnusualCaseWarning, stacklevel=2)
    return replace(case, warnings=(*case.warnings, *remarks))
