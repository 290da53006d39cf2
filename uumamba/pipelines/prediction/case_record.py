"""Record of each predicted case: its images, model, volumes and phases.

Volume tables and the page are made from these records, also of cases that an earlier call predicted.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self
from warnings import warn

from pydantic import TypeAdapter

from uumamba.data.case_files import ImagePath, list_paths
from uumamba.data.stored_json import read_json
from uumamba.pipelines.prediction.segmented_case import SegmentedCase
from uumamba.runtime.errors import UsageError
from uumamba.runtime.files import make_folder, remove_file, write_json

RECORDS_NAME = "records"


@dataclass(frozen=True)
class Origin:
    """Everything that a label map depends on.

    Attributes:
        model_sha256: hash of the weights and of the chosen postprocessing.
        input_sha256: hash of the bytes of the case's files, wherever they are.
        options: options of prediction that can change the result.
    """

    model_sha256: str
    input_sha256: str
    options: Mapping[str, Any]


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
        structures: label value of each structure in the label map.
        colours: colour of each structure in the preview.
        origin: everything that the label map depends on; None in records of earlier versions.
        patient_id: the patient, if known.
        times_ms: time of each frame of a cine, if known.

    Raises:
        ValueError: there is no frame, or a phase, time or structure is not of these frames.
    """

    case_id: str
    images: tuple[str, ...]
    label: str
    model: str
    spacing_mm: tuple[float, ...]
    volumes_ml: tuple[Mapping[str, float], ...]
    phases: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    structures: Mapping[str, int] = field(default_factory=dict)
    colours: Mapping[str, str] = field(default_factory=dict)
    origin: Origin | None = None
    patient_id: str | None = None
    times_ms: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        count = len(self.volumes_ml)
        is_whole = (
            len({frozenset(volumes) for volumes in self.volumes_ml}) == 1
            and all(0 <= index < count for index in self.phases.values())
            and (self.times_ms is None or len(self.times_ms) == count)
        )
        if not is_whole:
            raise ValueError("frames, phases, times and structures of a record do not belong together")

    @classmethod
    def of(
        cls,
        case: SegmentedCase,
        *,
        label: str,
        image: ImagePath,
        model: str,
        colours: Mapping[str, str],
        origin: Origin,
    ) -> Self:
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
            structures=dict(case.structures),
            colours=dict(colours),
            origin=origin,
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


def read_record(out: Path, case_id: str) -> CaseRecord | None:
    """Read a case's record, or return None.

    There is none if it is missing, damaged or of another case.
    """
    try:
        stored = read_json(_find_record(out, case_id), TypeAdapter(CaseRecord), expected="a record", fix="")
    except (UsageError, OSError):
        return None
    return stored if stored.case_id == case_id else None


def read_records(out: Path) -> dict[str, CaseRecord]:
    """Read the records of all predicted cases in a folder.

    They are in the order of the case ids. A damaged record is left out, as if its case had not been predicted, with a
    warning.
    """
    found: dict[str, CaseRecord] = {}
    for path in sorted((out / RECORDS_NAME).glob("*.json")):
        case_id = path.name.removesuffix(".json")
        if path.name.startswith(".unfinished-"):  # of a process that is writing
            continue
        if (record := read_record(out, case_id)) is not None:
            found[case_id] = record
        elif path.exists():
            warn(f"{path} is damaged, so its case is left out; predict the case again.", stacklevel=2)
    return found


def remove_record(out: Path, case_id: str) -> None:
    """Remove the record of an earlier call, if there is one."""
    remove_file(_find_record(out, case_id))


def _find_record(out: Path, case_id: str) -> Path:
    return out / RECORDS_NAME / f"{case_id}.json"
