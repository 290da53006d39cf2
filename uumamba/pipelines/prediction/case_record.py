"""Record of each predicted case: its images, model, volumes and phases.

Volume tables and the page are made from these records, also of cases that an earlier call predicted.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self
from warnings import warn

from pydantic import TypeAdapter

from uumamba.data.case_files import ImagePath
from uumamba.data.stored_json import read_json
from uumamba.pipelines.prediction.segmented_case import SegmentedCase
from uumamba.runtime.errors import UsageError
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
        patient_id: the patient, if known.
        times_ms: time of each frame of a cine, if known.
    """

    case_id: str
    images: tuple[str, ...]
    label: str
    model: str
    spacing_mm: tuple[float, ...]
    volumes_ml: tuple[Mapping[str, float], ...]
    phases: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    patient_id: str | None = None
    times_ms: tuple[float, ...] | None = None

    @classmethod
    def of(cls, case: SegmentedCase, *, label: str, image: ImagePath, model: str) -> Self:
        """Make the record of a segmented case."""
        return cls(
            case_id=case.case_id,
            images=tuple(map(str, [image] if isinstance(image, Path) else image)),
            label=label,
            model=model,
            spacing_mm=tuple(map(float, case.frames[0].spacing_mm)),
            volumes_ml=tuple(case.measure_volumes_ml()),
            phases=dict(case.phases),
            warnings=case.warnings,
            patient_id=case.patient_id,
            times_ms=case.times_ms,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the content of the record's file."""
        return asdict(self)


def write_record(out: Path, record: CaseRecord) -> None:
    """Write a case's record, atomically, into ``out/records``."""
    make_folder(out / RECORDS_NAME)
    write_json(_find_record(out, record.case_id), record.to_json())


def read_records(out: Path) -> list[CaseRecord]:
    """Read the records in ``out/records``, by case id.

    A record that cannot be read is left out with a warning.
    """
    adapter, records = TypeAdapter(CaseRecord), []
    for path in sorted((out / RECORDS_NAME).glob("[!.]*.json")):
        try:
            records.append(read_json(path, adapter, expected="a record of predict", fix="predict the case again"))
        except UsageError as error:
            if path.exists():  # another process may have removed it, to predict its case again
                warn(f"A record is left out: {error}", stacklevel=2)
    return sorted(records, key=lambda record: record.case_id)


def remove_record(out: Path, case_id: str) -> None:
    """Remove the record of an earlier call, if there is one."""
    remove_file(_find_record(out, case_id))


def _find_record(out: Path, case_id: str) -> Path:
    return out / RECORDS_NAME / f"{case_id}.json"
