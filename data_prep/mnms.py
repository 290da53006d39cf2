"""M&Ms, hearts of several centres, vendors and diseases: from its official layout to a manifest."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from data_prep.folds import assign_folds
from data_prep.mnms_frames import cut_frames
from data_prep.mnms_layout import PARTS, MnmsFolder, find_folder, frame_files, frame_id, holds_cines
from data_prep.mnms_sheet import VENDORS, SheetRow, checked_row, find_sheet, read_sheet
from data_prep.scan_files import check_pair
from data_prep.shell import exit_code_of
from uumamba.data.case import Case, Manifest
from uumamba.runtime.errors import CaseError, UsageError

STRUCTURES: Mapping[str, int] = {"RV": 1, "MYO": 2, "LV": 3}
TRAINING = "Training/Labeled"
REFERENCE = (
    "V. M. Campello, P. Gkontra, C. Izquierdo, C. Martin-Isla et al., Multi-Centre, Multi-Vendor and Multi-Disease "
    "Cardiac Segmentation: The M&Ms Challenge, IEEE Transactions on Medical Imaging 40(12), 3543-3554, 2021, "
    "doi 10.1109/TMI.2021.3090082"
)
LICENCE = "as agreed to on registration at https://www.ub.edu/mnms"

_CUT_AGAIN = "cut the frames again from the M&Ms download"


def read_mnms(
    raw: Path | str,
    *,
    frames: Path | str | None = None,
    test: Sequence[str] = ("Testing",),
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Manifest, list[CaseError]]:
    r"""List the end-diastolic and end-systolic frames of M&Ms as cases, the vendor as the domain.

    The download has a 4-D cine and a 4-D label for each patient, with label values in another order than ACDC's.
    Cases are 3-D and of ACDC's order (1 RV, 2 MYO, 3 LV), so the frames are cut out of the cines once, by
    :func:`data_prep.mnms_frames.cut_frames`; a ``case_id`` is ``A0S9V9_frame09``, counted from 0 as in the sheet. A
    model of ACDC is thereby scored on M&Ms as it is, and the reverse.

    The patients of ``Training/Labeled`` (vendors A and B) are dealt to the folds, stratified by vendor and diagnosis:
    a checkpoint is then chosen by the vendors that it was trained on. ``Testing`` (A to D) is the test split;
    ``Validation`` also has patients of the unseen vendors, so it is left out unless ``test`` names it.
    ``Training/Unlabeled`` is left out. Domains are the sheet's letters, whose names stand in the manifest's
    ``domains``.

    Headers are read, voxels are not. A patient or case with a fault is left out and reported, as is one with a folder
    in several parts; the folds of the others do not move, unless it is the sheet's row that is at fault.

    Args:
        raw: a folder of frames; with ``frames``, the download.
        frames: where the frames of the download lie or are to be cut to, outside of it.
        test: the parts of the download that make up the test split.
        advance: called with the patients whose frames stand and their number, while they are cut.

    Returns:
        The manifest, and one error for each patient or case left out.

    Raises:
        UsageError: the folder is missing, holds no patient or no information sheet, or holds whole cines and
            ``frames`` does not say where their frames go; the sheet cannot be read; ``test`` names no such part.

    Example:
        >>> import tempfile, nibabel, numpy
        >>> raw = Path(tempfile.mkdtemp())
        >>> patient = raw / "Training" / "Labeled" / "A0S9V9"
        >>> patient.mkdir(parents=True)
        >>> cine = nibabel.Nifti1Image(numpy.ones((4, 4, 2, 10), numpy.uint8), numpy.diag([1.0, 1.0, 9.0, 1.0]))
        >>> for name in ("A0S9V9_sa.nii.gz", "A0S9V9_sa_gt.nii.gz"):
        ...     nibabel.save(cine, patient / name)
        >>> _ = (raw / "info.csv").write_text("External code,Vendor,Centre,ED,ES,Pathology\nA0S9V9,A,1,0,9,HCM\n")
        >>> manifest, errors = read_mnms(raw, frames=tempfile.mkdtemp())
        >>> [(case.case_id, case.phase, case.domain, case.group) for case in manifest.cases]
        [('A0S9V9_frame00', 'ED', 'A', 'HCM'), ('A0S9V9_frame09', 'ES', 'A', 'HCM')]

    References:
        Campello et al., IEEE TMI 40(12), 2021, doi 10.1109/TMI.2021.3090082.
    """
    if unknown := set(test) - set(PARTS[1:]):
        raise UsageError(f"M&Ms has no test part {', '.join(sorted(unknown))}; name some of {', '.join(PARTS[1:])}.")
    uncut = [] if frames is None else cut_frames(raw, frames, advance=advance)
    folder = find_folder(Path(raw if frames is None else frames))
    listed = find_folder(Path(raw))  # frames of a patient who left the download since are no case
    if holds_cines(folder):
        raise UsageError(
            f"The scans of {raw} are whole cines of all frames; cut out the labelled ones with "
            f"`python -m data_prep.mnms {raw} FRAMES` and give FRAMES, a new folder outside of it."
        )
    rows = read_sheet(find_sheet(folder.sheets))
    cases: list[Case] = []
    repeated = listed.repeated()
    errors = list(repeated.values())
    folds = _folds(listed, rows)
    for part in (TRAINING, *test):
        once = (each.name for each in listed.patients(part) if each.name not in repeated)
        for patient in (folder.root / part / name for name in once):
            found, faults = _read_patient(patient, rows.get(patient.name), folds.get(patient.name))
            cases += found
            errors += faults
    told = {fault.case_id for fault in uncut}
    errors = [*uncut, *(fault for fault in errors if fault.case_id.partition("_")[0] not in told)]
    vendors = {case.domain: VENDORS[case.domain] for case in cases}
    manifest = Manifest(
        "M&Ms",
        "cine MRI",
        dict(STRUCTURES),
        tuple(cases),
        reference=REFERENCE,
        licence=LICENCE,
        extra={"domains": dict(sorted(vendors.items())), "test_parts": list(test)},
    )
    return manifest, sorted(errors, key=lambda fault: fault.case_id)


def _folds(folder: MnmsFolder, rows: Mapping[str, SheetRow]) -> dict[str, int]:
    """Of the training patients that the sheet lists, whether or not their files are whole."""
    listed = [patient.name for patient in folder.patients(TRAINING) if patient.name in rows]
    return assign_folds({name: f"{rows[name].vendor} {rows[name].pathology}" for name in listed})


def _read_patient(patient: Path, row: SheetRow | None, fold: int | None) -> tuple[list[Case], list[CaseError]]:
    cases: list[Case] = []
    errors: list[CaseError] = []
    try:
        row = checked_row(patient.name, row)
        frames = row.frame_numbers(patient.name)
    except CaseError as fault:
        return [], [fault]
    for phase, frame in frames.items():
        try:
            cases.append(_frame_case(patient, row, phase, frame, fold))
        except CaseError as fault:
            errors.append(fault)
    return cases, errors


def _frame_case(patient: Path, row: SheetRow, phase: str, frame: int, fold: int | None) -> Case:
    case_id = frame_id(patient.name, frame)
    image, label = frame_files(patient, frame)
    for what, path in (("image", image), ("label", label)):
        if not path.is_file():
            raise CaseError(case_id, f"its {what} {path.name} ({phase} in the sheet) is missing", _CUT_AGAIN)
    check_pair(image, label, case_id=case_id)
    return Case(
        case_id=case_id,
        patient_id=patient.name,
        domain=row.vendor,
        image=image,
        label=label,
        fold=fold,
        phase=phase,
        group=row.pathology or None,
        split="training" if patient.parent.name == "Labeled" else "test",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Cut the frames from the shell; 3 is the exit code when some patients failed, 2 of a wrong use."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.mnms",
        description="Cut the ED and ES frames out of the cines of M&Ms, with label values in ACDC's order.",
        epilog="Example: python -m data_prep.mnms OpenDataset mnms_frames",
    )
    parser.add_argument("raw", type=Path, help="the M&Ms download; only read")
    parser.add_argument("out", type=Path, help="folder for the frames; another call goes on where one was stopped")
    given = parser.parse_args(arguments)
    return exit_code_of(partial(cut_frames, given.raw, given.out, advance=_say))


def _say(done: int, total: int) -> None:
    if done % 50 == 0 or done == total:
        print(f"frames: {done} of {total} patients", flush=True)


if __name__ == "__main__":
    sys.exit(main())
