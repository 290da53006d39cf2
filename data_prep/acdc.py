"""Reader of ACDC, the Automated Cardiac Diagnosis Challenge."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data_prep.folds import assign_folds
from data_prep.raw_folder import OTHER_FOLDER, check_file, collect
from data_prep.reader import Read, Reader
from uumamba.data.case import Case, Manifest, Split
from uumamba.runtime.errors import CaseError, require, require_case
from uumamba.runtime.text_files import read_limited

STRUCTURES: Mapping[str, int] = {"RV": 1, "MYO": 2, "LV": 3}
PHASES = ("ED", "ES")
REFERENCE = (
    "O. Bernard, A. Lalande, C. Zotti, F. Cervenansky et al., Deep Learning Techniques for Automatic MRI Cardiac "
    "Multi-structures Segmentation and Diagnosis: Is the Problem Solved?, IEEE Transactions on Medical Imaging 37(11), "
    "2514-2525, 2018, doi 10.1109/TMI.2018.2837502"
)
LICENCE = "CC BY-NC-SA 4.0 (non-commercial, share alike; every use must cite the reference)"

_LAYOUT = (
    "a folder with training/patient001/Info.cfg and so on, as in the ACDC download, with or without database/ above"
)
_PATIENT_NAME = re.compile(r"patient\d+")
_RESTORE = "restore the patient's folder from the ACDC download"


@dataclass(frozen=True)
class PatientInfo:
    """Frame number of each phase, and diagnosis, from a patient's ``Info.cfg``."""

    folder: Path
    frames: Mapping[str, int]
    group: str | None


def read_acdc(raw: Path | str) -> tuple[Manifest, list[CaseError]]:
    r"""List the end-diastolic and end-systolic frames of ACDC as cases.

    Folds are grouped by patient and stratified by diagnosis. Only names and ``Info.cfg`` are read, no image. A
    ``case_id`` is ``patient001_frame01``; the cine ``*_4d.nii.gz`` is left out. Cases of ``testing/`` get
    ``split="test"`` and no fold, and need neither label nor group. A faulty patient or case is left out and reported;
    the folds of the others do not change as long as its group can be read.

    Args:
        raw: the folder that holds ``training/`` and perhaps ``testing/``, its parent with a ``database/`` level, or
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
        >>> errors[0].key, errors[0].got, errors[0].expected
        ('label', 'no file', 'patient001_frame12_gt.nii.gz')

    References:
        Bernard et al., IEEE TMI 37(11), 2018, doi 10.1109/TMI.2018.2837502.
    """
    cases: list[Case] = []
    errors: list[CaseError] = []
    for split, folders in _find_patients(Path(raw)).items():
        infos, unreadable = collect(partial(read_info, needs_group=split == "training"), folders)
        folds = assign_folds({info.folder.name: info.group for info in infos if info.group and split == "training"})
        frames = ((info, phase, split, folds.get(info.folder.name)) for info in infos for phase in PHASES)
        found, incomplete = collect(lambda frame: _make_frame_case(*frame), frames)
        cases += found
        errors += sorted([*unreadable, *incomplete], key=lambda error: error.case_id)
    manifest = Manifest("ACDC", "cine MRI", dict(STRUCTURES), tuple(cases), reference=REFERENCE, licence=LICENCE)
    return manifest, errors


def read_phantom(raw: Path | str) -> Read:
    """List the phantom's cases, without ACDC's citation and licence.

    The phantom has ACDC's layout but no real patients.
    """
    manifest, errors = read_acdc(raw)
    return replace(manifest, name="phantom", reference="", licence=""), errors


def _find_patients(raw: Path) -> dict[Split, list[Path]]:
    for root in (raw / "database", raw):
        patients: dict[Split, list[Path]] = {
            "training": _list_patient_folders(root / "training"),
            "test": _list_patient_folders(root / "testing"),
        }
        if any(patients.values()):
            return patients
    # A folder of patients. A folder named testing is never used for training.
    patients = {"test" if raw.resolve().name == "testing" else "training": _list_patient_folders(raw)}
    require(any(patients.values()), "raw", got=raw, expected=_LAYOUT, fix=OTHER_FOLDER)
    return patients


def _list_patient_folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.glob("*") if _PATIENT_NAME.fullmatch(entry.name) and entry.is_dir())


def read_info(folder: Path, *, needs_group: bool = False) -> PatientInfo:
    """Read a patient's ``Info.cfg``.

    Lines are ``Key: value``, in any order, with any line ends.

    Raises:
        CaseError: there is no such file, or it lacks a frame number or a necessary group.
    """
    try:
        text = read_limited(folder / "Info.cfg").decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise CaseError(folder.name, "Info.cfg", got=error, expected="a text file", fix=_RESTORE) from None
    pairs = (line.partition(":") for line in text.splitlines())
    values = {key.strip(): value.strip() for key, colon, value in pairs if colon}
    frames = {phase: values.get(phase, "") for phase in PHASES}
    for phase, number in frames.items():
        require_case(
            re.fullmatch(r"0*[1-9][0-9]*", number),
            folder.name,
            phase,
            got=number,
            expected="an integer of at least 1",
            fix=f"write the frame number of {phase} into Info.cfg, such as '{phase}: 1'",
        )
    require_case(
        int(frames["ED"]) != int(frames["ES"]),
        folder.name,
        "ES",
        got=frames["ES"],
        expected="a frame different from ED",
        fix="correct the frame numbers in Info.cfg",
    )
    fix = "add the patient's diagnosis to Info.cfg, such as 'Group: NOR'"
    group = values.get("Group") or None
    require_case(group or not needs_group, folder.name, "Group", got="", expected="a diagnosis", fix=fix)
    return PatientInfo(folder, {phase: int(number) for phase, number in frames.items()}, group)


def _make_frame_case(info: PatientInfo, phase: str, split: Split, fold: int | None) -> Case:
    patient_id = info.folder.name
    case_id = f"{patient_id}_frame{info.frames[phase]:02d}"
    image, label = info.folder / f"{case_id}.nii.gz", info.folder / f"{case_id}_gt.nii.gz"
    check_file(image, case_id=case_id, key="image", fix=_RESTORE)
    if split == "training":
        check_file(label, case_id=case_id, key="label", fix=_RESTORE)
    return Case(
        case_id=case_id,
        patient_id=patient_id,
        domain="acdc",
        image=image,
        label=label if label.is_file() else None,
        fold=fold,
        phase=phase,
        group=info.group,
        split=split,
    )


ACDC = Reader(read_acdc, "ACDC", re.compile(r"(.*/)?patient\d+(/.*)?"))
PHANTOM = Reader(read_phantom, "phantom", ACDC.layout)
