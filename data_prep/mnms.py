"""Reader of M&Ms: cardiac cine MRI of several centres, vendors and diseases."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from data_prep.acdc import STRUCTURES
from data_prep.folds import assign_folds
from data_prep.mnms_frames import cut_frames
from data_prep.mnms_layout import (
    PARTS,
    find_folder,
    find_repeated,
    format_frame_id,
    holds_cines,
    list_frame_files,
    list_patients,
)
from data_prep.mnms_sheet import VENDORS, SheetRow, find_sheet, parse_frames, read_sheet
from data_prep.raw_folder import check_file, collect
from data_prep.reader import Reader
from data_prep.scan_files import check_scan_pair
from data_prep.shell import print_progress, run_command
from uumamba.data.case import Case, Manifest
from uumamba.runtime.errors import CaseError, require

TRAINING = "Training/Labeled"
REFERENCE = (
    "V. M. Campello, P. Gkontra, C. Izquierdo, C. Martin-Isla et al., Multi-Centre, Multi-Vendor and Multi-Disease "
    "Cardiac Segmentation: The M&Ms Challenge, IEEE Transactions on Medical Imaging 40(12), 3543-3554, 2021, "
    "doi 10.1109/TMI.2021.3090082"
)
LICENCE = "as agreed to on registration at https://www.ub.edu/mnms"


def read_mnms(
    raw: Path | str,
    *,
    frames: Path | str | None = None,
    test: Sequence[str] = ("Testing",),
    cut: bool = True,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Manifest, list[CaseError]]:
    r"""List the end-diastolic and end-systolic frames of M&Ms as cases.

    The download has a 4-D cine and a 4-D label for each patient, with label values in a different order from ACDC's.
    Cases are 3-D with ACDC's label values (1 RV, 2 MYO, 3 LV), so that a model of ACDC can be scored on M&Ms and the
    reverse. :func:`data_prep.mnms_frames.cut_frames` cuts the frames out of the cines once. A ``case_id`` is
    ``A0S9V9_frame09``; frames count from 0 as in the sheet. The domain of a case is the letter of its vendor; the
    manifest's ``domains`` gives the vendors' names.

    The patients of ``Training/Labeled`` (vendors A and B) are dealt to the folds, stratified by vendor and diagnosis.
    ``Testing`` (A to D) is the test split. ``Validation`` also has patients of vendors C and D, so it is left out
    unless ``test`` names it: checkpoints are chosen on the training vendors. ``Training/Unlabeled`` is left out.

    Headers are read, voxels are not. A faulty patient or case, or a patient with folders in several parts, is left out
    and reported. The folds of the others do not change, unless the sheet's row is faulty.

    Args:
        raw: the download, or a folder of frames.
        frames: folder for the frames cut from the download, outside of it; a folder of frames needs none.
        test: parts of the download that form the test split.
        cut: cut the frames; otherwise nothing is written, and cases are listed from sheet and folders alone, with the
            paths that their frames will have.
        advance: called with the number of patients done and of all, while frames are cut.

    Returns:
        The manifest, and one error for each patient or case left out.

    Raises:
        UsageError: the folder is missing, holds no patient or no information sheet, or holds cines without ``frames``
            given; the sheet cannot be read; ``test`` names an unknown part.

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
    unknown = sorted(set(test) - set(PARTS[1:]))
    require(not unknown, "test", got=", ".join(unknown), expected=f"some of {', '.join(PARTS[1:])}")
    listed = find_folder(Path(raw))  # old frames of a patient missing from the download are no case
    root = Path(frames) if frames is not None and holds_cines(listed) else listed
    uncut = cut_frames(raw, root, advance=advance) if cut and root != listed else []
    require(
        not holds_cines(root),
        "frames",
        got=frames,
        expected=f"a folder for the labelled frames cut from the cines in {raw}",
        fix=f"run `python -m data_prep.mnms {raw} FRAMES` and read FRAMES",
    )
    rows = read_sheet(find_sheet(listed))
    repeated = find_repeated(listed)
    found = [
        root / part / patient.name
        for part in (TRAINING, *test)
        for patient in list_patients(listed, part)
        if patient.name not in repeated
    ]
    dealt = [patient.name for patient in list_patients(listed, TRAINING) if patient.name in rows]
    folds = assign_folds({name: f"{rows[name]['Vendor']} {rows[name]['Pathology']}" for name in dealt})
    numbered, faulty = collect(lambda patient: (patient, parse_frames(patient.name, rows.get(patient.name))), found)
    labelled = (
        (patient, rows[patient.name], phase, frame, folds.get(patient.name))
        for patient, numbers in numbered
        for phase, frame in numbers.items()
    )
    cases, incomplete = collect(lambda frame: _make_frame_case(*frame, is_file=cut or root == listed), labelled)
    reported = {error.case_id for error in uncut}
    others = (
        error for error in (*repeated.values(), *faulty, *incomplete) if error.case_id.partition("_")[0] not in reported
    )
    manifest = Manifest(
        "M&Ms",
        "cine MRI",
        dict(STRUCTURES),
        tuple(cases),
        reference=REFERENCE,
        licence=LICENCE,
        extra={
            "domains": {letter: VENDORS[letter] for letter in sorted({case.domain for case in cases})},
            "test_parts": list(test),
        },
    )
    return manifest, sorted([*uncut, *others], key=lambda error: error.case_id)


def _make_frame_case(patient: Path, row: SheetRow, phase: str, frame: int, fold: int | None, *, is_file: bool) -> Case:
    case_id = format_frame_id(patient.name, frame)
    image, label = list_frame_files(patient, frame)
    if is_file:
        for key, path in (("image", image), ("label", label)):
            check_file(path, case_id=case_id, key=key, fix="cut the frames again from the M&Ms download")
        check_scan_pair(image, label, case_id=case_id)
    return Case(
        case_id=case_id,
        patient_id=patient.name,
        domain=row["Vendor"],
        image=image,
        label=label,
        fold=fold,
        phase=phase,
        group=row["Pathology"] or None,
        split="training" if patient.parent.name == "Labeled" else "test",
    )


MNMS = Reader(
    read_mnms,
    "M&Ms",
    re.compile(r"(.*/)?(Training/(Labeled|Unlabeled)|Validation|Testing)/.*"),
    cuts_frames=True,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Cut the frames from the shell, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.mnms",
        description="Cut the ED and ES frames out of the cines of M&Ms, with label values in ACDC's order.",
        epilog="Example: python -m data_prep.mnms OpenDataset mnms_frames",
    )
    parser.add_argument("raw", type=Path, help="the M&Ms download; only read")
    parser.add_argument("out", type=Path, help="folder for the frames; run again to continue after an interruption")
    given = parser.parse_args(arguments)
    return run_command(partial(cut_frames, given.raw, given.out, advance=print_progress("patients")))


if __name__ == "__main__":
    sys.exit(main())
