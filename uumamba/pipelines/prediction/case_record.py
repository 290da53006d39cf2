"""Record of each predicted case: its images, model, volumes and phases.

Volume tables and the page are made from these records, also of cases that an earlier call predicted.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from uumamba.data.case_files import ImagePath, list_paths
from uumamba.pipelines.prediction.segmented_case import SegmentedCase
from uumamba.runtime.files import make_folder, remove_file, write_json

RECORDS_NAME = "records"


@dataclass(frozen=True)
class CaseRecord:
    """Images, volumes and phases of a predicted case.

    Attributes:
        case_id: name of the case.
        images: paths of its files.
        label: name of the label map's file.
        model: model as the user named it.
        spacing_mm: spacing of the stored axes.
        volumes_ml: volume of each structure, by frame.
        phases: index of the frame of each known phase.
        warnings: sentences about the input for the user.
    """

    case_id: str
    images: tuple[str, ...]
    label: str
    model: str
    spacing_mm: tuple[float, ...]
    volumes_ml: tuple[Mapping[str, float], ...]
    phases: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, case: SegmentedCase, *, label: str, image: ImagePath, model: str) -> Self:
        """Make the record of a segmented case."""
        return cls(
            case_id=case.case_id,
            images=tuple(map(str, list_paths(image))),
            label=label,
            model=model,
            spacing_mm=tuple(map(float, case.frames[0].spacing_mm)),
            volumes_ml=tuple(case.measure_volumes_ml()),
            phases=dict(case.phases),
            warnings=case.warnings,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of the record's file."""
        return asdict(self)


def write_record(out: Path, record: CaseRecord) -> None:
    """Write a case's record, atomically, into ``out/records``."""
    make_folder(out / RECORDS_NAME)
    write_json(_find_record(out, record.case_id), record.to_json())


def remove_record(out: Path, case_id: str) -> None:
    """Remove the record of an earlier call, if there is one."""
    remove_file(_find_record(out, case_id))


def _find_record(out: Path, case_id: str) -> Path:
    return out / RECORDS_NAME / f"{case_id}.json"
