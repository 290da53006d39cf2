"""ACDC, the Automated Cardiac Diagnosis Challenge: from its official layout to a manifest."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.folds import assign_folds
from uumamba.data.case import Case, Manifest, Split
from uumamba.runtime.errors import CaseError, UsageError

STRUCTURES: Mapping[str, int] = {"RV": 1, "MYO": 2, "LV": 3}
PHASES = ("ED", "ES")
REFERENCE = (
    "O. Bernard, A. Lalande, C. Zotti, F. Cervenansky et al., Deep Learning Techniques for Automatic MRI Cardiac "
    "Multi-structures Segmentation and Diagnosis: Is the Problem Solved?, IEEE Transactions on Medical Imaging 37(11), "
    "2514-2525, 2018, doi 10.1109/TMI.2018.2837502"
)
LICENCE = "CC BY-NC-SA 4.0 (non-commercial, share alike; every use must cite the reference)"

_EXPECTED = "expected training/patient001/Info.cfg and so on, as in the ACDC download, with or without database/ above"
_PATIENT_NAME = re.compile(r"patient\d+")
_REPAIR = "restore the patient's folder from the ACDC download"


@dataclass(frozen=True)
class PatientInfo:
    """What ``Info.cfg`` says of a patient: the frame numbers of end diastole and end systole, and the diagnosis."""

    frames: Mapping[str, int]
    group: str | None


def read_acdc(raw: Path | str) -> tuple[Manifest, list[CaseError]]:
    r"""List ACDC's end-diastolic and end-systolic frames as cases, with patient-grouped folds stratified by diagnosis.

    Only names and ``Info.cfg`` are read, no image. A ``case_id`` is ``patient001_frame01``; the cine ``*_4d.nii.gz``
    is left out. Cases of ``testing/`` get ``split="test"`` and no fold, and need neither label nor group. A patient or
    case with a fault is left out and reported; the folds of the others stand as long as its group can be read.

    Args:
        raw: the folder that holds ``training/`` and perhaps ``testing/``, the one above with a ``database/`` level, or
            ``training/`` itself.

    Returns:
        The manifest, and one error for each patient or case left out.

    Raises:
        UsageError: the folder is missing, or holds no patient.

    Example:
        >>> import tempfile
        >>> raw = Path(tempfile.mkdtemp())
        >>> patient = raw / "training" / "patient001"
        >>> patient.mkdir(parents=True)
        >>> _ = (patient / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\n")
        >>> for name in ("frame01", "frame01_gt", "frame12"):
        ...     (patient / f"patient001_{name}.nii.gz").touch()
        >>> manifest, errors = read_acdc(raw)
        >>> [(case.case_id, case.phase, case.group) for case in manifest.cases]
        [('patient001_frame01', 'ED', 'DCM')]
        >>> [error.problem for error in errors]
        ['its label patient001_frame12_gt.nii.gz is missing']

    References:
        Bernard et al., IEEE TMI 37(11), 2018, doi 10.1109/TMI.2018.2837502.
    """
    cases: list[Case] = []
    errors: list[CaseError] = []
    for split, folders in _find_patients(Path(raw)).items():
        found, faults = _read_split(split, folders)
        cases += found
        errors += faults
    manifest = Manifest("ACDC", "cine MRI", dict(STRUCTURES), tuple(cases), reference=REFERENCE, licence=LICENCE)
    return manifest, errors


def parse_info(folder: Path) -> PatientInfo:
    """Read a patient's ``Info.cfg``: lines of ``Key: value``, in any order, with any line ends.

    Raises:
        CaseError: the file is missing or unreadable, ED or ES is missing or no whole number from 1, or both are equal.
    """
    path = folder / "Info.cfg"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise CaseError(folder.name, "its Info.cfg is missing", _REPAIR) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CaseError(folder.name, f"its Info.cfg cannot be read ({error})", _REPAIR) from None
    pairs = (line.partition(":") for line in text.splitlines())
    values = {key.strip(): value.strip() for key, colon, value in pairs if colon}
    frames = {phase: _frame_number(folder.name, phase, values.get(phase)) for phase in PHASES}
    if len(set(frames.values())) < len(PHASES):
        problem = f"Info.cfg gives frame {frames['ED']} as both ED and ES"
        raise CaseError(folder.name, problem, "correct the frame numbers in Info.cfg")
    return PatientInfo(frames, values.get("Group") or None)


def _find_patients(raw: Path) -> dict[Split, list[Path]]:
    if not raw.is_dir():
        found = "is a file" if raw.exists() else "does not exist"
        raise UsageError(f"The raw ACDC folder {raw} {found}; {_EXPECTED}.")
    patients: dict[Split, list[Path]] = {}
    for root in (raw / "database", raw):
        patients = {"training": _patient_folders(root / "training"), "test": _patient_folders(root / "testing")}
        if any(patients.values()):
            return patients
    # A folder of patients itself; one called testing keeps its meaning, so the final exam is never trained on.
    split: Split = "test" if raw.resolve().name == "testing" else "training"
    patients = {split: _patient_folders(raw)}
    if not any(patients.values()):
        raise UsageError(f"No patient folder was found in {raw}; {_EXPECTED}.")
    return patients


def _patient_folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if _PATIENT_NAME.fullmatch(entry.name) and entry.is_dir())


def _read_split(split: Split, folders: list[Path]) -> tuple[list[Case], list[CaseError]]:
    infos: dict[Path, PatientInfo] = {}
    errors: list[CaseError] = []
    for folder in folders:
        try:
            infos[folder] = _info_for_split(folder, split)
        except CaseError as error:
            errors.append(error)
    groups = {folder.name: info.group for folder, info in infos.items() if info.group is not None}
    folds = assign_folds(groups) if split == "training" else {}
    cases: list[Case] = []
    for folder, info in infos.items():
        for phase in PHASES:
            try:
                cases.append(_frame_case(folder, info, phase, split, folds.get(folder.name)))
            except CaseError as error:
                errors.append(error)
    return cases, sorted(errors, key=lambda error: error.case_id)


def _info_for_split(folder: Path, split: Split) -> PatientInfo:
    info = parse_info(folder)
    if split == "training" and info.group is None:
        raise CaseError(folder.name, "its Info.cfg has no Group", "add its diagnosis as a line such as 'Group: NOR'")
    return info


def _frame_case(folder: Path, info: PatientInfo, phase: str, split: Split, fold: int | None) -> Case:
    case_id = f"{folder.name}_frame{info.frames[phase]:02d}"
    image = folder / f"{case_id}.nii.gz"
    label = folder / f"{case_id}_gt.nii.gz"
    if not image.is_file():
        raise CaseError(case_id, f"its image {image.name} ({phase} in Info.cfg) is missing", _REPAIR)
    if split == "training" and not label.is_file():
        raise CaseError(case_id, f"its label {label.name} is missing", _REPAIR)
    return Case(
        case_id=case_id,
        patient_id=folder.name,
        domain="acdc",
        image=image,
        label=label if label.is_file() else None,
        fold=fold,
        phase=phase,
        group=info.group,
        split=split,
    )


def _frame_number(patient_id: str, phase: str, text: str | None) -> int:
    cure = f"write the frame number of {phase}, such as '{phase}: 1', into Info.cfg"
    if text is None:
        raise CaseError(patient_id, f"its Info.cfg has no {phase}", cure)
    if not re.fullmatch(r"0*[1-9][0-9]*", text):
        raise CaseError(patient_id, f"its Info.cfg gives {phase} as {text!r}, not a whole number from 1 on", cure)
    return int(text)
