"""Reader of AortaSeg24: CT angiographies with 23 aortic branches and zones."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from data_prep.folds import assign_folds
from data_prep.raw_folder import OTHER_FOLDER, collect, group_scans, list_files, select_single_file
from data_prep.reader import Reader
from data_prep.scan_files import check_scan_pair
from uumamba.data.case import Case, Manifest, Split
from uumamba.runtime.errors import CaseError, require

STRUCTURES: Mapping[str, int] = {
    "Zone0": 1,
    "Innominate": 2,
    "Zone1": 3,
    "LCC": 4,  # left common carotid
    "Zone2": 5,
    "LSA": 6,  # left subclavian
    "Zone3": 7,
    "Zone4": 8,
    "Zone5": 9,
    "Zone6": 10,
    "Celiac": 11,
    "Zone7": 12,
    "SMA": 13,  # superior mesenteric
    "Zone8": 14,
    "RenalR": 15,
    "RenalL": 16,
    "Zone9": 17,
    "Zone10R": 18,  # common iliac
    "Zone10L": 19,
    "InternalIliacR": 20,
    "InternalIliacL": 21,
    "Zone11R": 22,  # external iliac
    "Zone11L": 23,
}
MIRROR_PAIRS: Sequence[tuple[str, str]] = (
    ("RenalR", "RenalL"),
    ("Zone10R", "Zone10L"),
    ("InternalIliacR", "InternalIliacL"),
    ("Zone11R", "Zone11L"),
)
"""Pairs of lateral structures (right, left), whose labels a left/right mirror exchanges."""

SIDES: Mapping[str, Literal["right", "left"]] = {
    **{right: "right" for right, _ in MIRROR_PAIRS},
    **{left: "left" for _, left in MIRROR_PAIRS},
    "LCC": "left",
    "LSA": "left",
}
"""The patient's side of each lateral structure; LCC and LSA have no partner."""

LAST_TRAINING_SUBJECT = 40
REFERENCE = (
    "M. Imran, J. R. Krebs, V. B. Sivaraman et al., Multi-Class Segmentation of Aortic Branches and Zones in Computed "
    "Tomography Angiography: The AortaSeg24 Challenge, 2025, arXiv:2502.05330; M. Imran, J. R. Krebs, V. R. R. Gopu et "
    "al., CIS-UNet: Multi-Class Segmentation of the Aorta in Computed Tomography Angiography via Context-Aware Shifted "
    "Window Self-Attention, 2024, arXiv:2401.13049"
)
LICENCE = "no public licence: the challenge's signed data agreement (aortaseg24.grand-challenge.org) governs every use"

_LAYOUT = (
    "a folder with images/subject001_CTA.mha, masks/subject001_label.mha and so on, as in the challenge's download"
)
_SCAN_NAME = re.compile(r"subject(?P<number>\d{1,9})_(?P<kind>CTA|label)(\.mha|\.nii|\.nii\.gz)", re.IGNORECASE)
_RESTORE = "restore the file from the download"


def read_aorta(raw: Path | str) -> tuple[Manifest, list[CaseError]]:
    """List the public cases of AortaSeg24.

    Subjects are found by name, ``subject001_CTA.mha`` with ``subject001_label.mha``, or CIS-UNet's
    ``Subject001_CTA.nii.gz`` with ``Subject001_Label.nii.gz``, in any subfolders; their numbers have gaps. The case
    is ``subject001``. Test cases need no label.

    The challenge does not publish its test labels. Subjects from 041 on are therefore the test set, as in the code
    released with UU-Mamba. That code trains on 001 to 043 and tests on 041 to 053; here 041 to 043 are test cases only.

    Ten structures have a side by name, and the arch turns to the left: a left/right mirrored scan resembles no patient.
    The manifest's ``extra`` gives the ``sides`` of these structures, and the ``mirror_pairs`` whose labels a mirror
    exchanges; neither augmentation nor test-time averaging should mirror along that axis.

    Headers are read, voxels are not. A case is left out and reported if its image is damaged, its label has another
    grid, or one of its files is missing or found twice.

    Args:
        raw: the folder that holds ``images/`` and ``masks/``, or a parent folder.

    Returns:
        The manifest, and one error for each case left out.

    Raises:
        UsageError: the folder is missing, or holds no subject.

    Example:
        >>> import tempfile, SimpleITK
        >>> raw = Path(tempfile.mkdtemp())
        >>> volume = SimpleITK.Image(4, 4, 4, SimpleITK.sitkUInt8)
        >>> for name in ("images/subject007_CTA.mha", "masks/subject007_label.mha", "images/subject009_CTA.mha"):
        ...     (raw / name).parent.mkdir(exist_ok=True)
        ...     SimpleITK.WriteImage(volume, raw / name)
        >>> manifest, errors = read_aorta(raw)
        >>> [(case.case_id, case.split) for case in manifest.cases]
        [('subject007', 'training')]
        >>> print(errors[0])
        subject009: label: got no file, expected subject009_label.mha. Fix: restore the file from the download.
        >>> manifest.extra["mirror_pairs"][0]
        ['RenalR', 'RenalL']

    References:
        Imran et al., The AortaSeg24 Challenge, 2025, arXiv:2502.05330.
    """
    scans = group_scans(list_files(Path(raw)), _SCAN_NAME)
    require(scans, "raw", got=raw, expected=_LAYOUT, fix=OTHER_FOLDER)
    folds = assign_folds({_format_case_id(number): "" for number in scans if number <= LAST_TRAINING_SUBJECT})
    cases, errors = collect(lambda number: _make_case(number, scans[number], folds), sorted(scans))
    manifest = Manifest(
        "AortaSeg24",
        "CT angiography",
        dict(STRUCTURES),
        tuple(cases),
        reference=REFERENCE,
        licence=LICENCE,
        extra={"sides": dict(SIDES), "mirror_pairs": [list(pair) for pair in MIRROR_PAIRS]},
    )
    return manifest, errors


def _make_case(number: int, files: Mapping[str, Sequence[Path]], folds: Mapping[str, int]) -> Case:
    case_id = _format_case_id(number)
    split: Split = "training" if number <= LAST_TRAINING_SUBJECT else "test"
    image = select_single_file(case_id, "image", files.get("cta", ()), name=f"{case_id}_CTA.mha", fix=_RESTORE)
    label = None
    if "label" in files or split == "training":
        label = select_single_file(case_id, "label", files.get("label", ()), name=f"{case_id}_label.mha", fix=_RESTORE)
    check_scan_pair(image, label, case_id=case_id)
    return Case(
        case_id=case_id,
        patient_id=case_id,
        domain="aortaseg24",
        image=image,
        label=label,
        fold=folds.get(case_id),
        split=split,
    )


def _format_case_id(number: int) -> str:
    return f"subject{number:03d}"


AORTA = Reader(read_aorta, "AortaSeg24", re.compile(f"(.*/)?{_SCAN_NAME.pattern}", re.IGNORECASE), vessels=STRUCTURES)
