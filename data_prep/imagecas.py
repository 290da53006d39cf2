"""Reader of ImageCAS: a thousand coronary CT angiographies with official splits."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Literal, get_args

from data_prep.folds import assign_folds
from data_prep.raw_folder import OTHER_FOLDER, collect, group_scans, list_files, select_single_file
from data_prep.reader import Reader
from data_prep.scan_files import check_scan_pair
from data_prep.spreadsheet import read_rows
from uumamba.data.case import Case, Manifest
from uumamba.runtime.errors import CaseError, require, require_case

OfficialSplit = Literal["Split-1", "Split-2", "Split-3", "Split-4"]
SHEET = "v2-latest"
STRUCTURES: Mapping[str, int] = {"coronary": 1}
REFERENCE = (
    "A. Zeng, C. Wu, G. Lin, W. Xie et al., ImageCAS: A Large-Scale Dataset and Benchmark for Coronary Artery "
    "Segmentation based on Computed Tomography Angiography Images, Computerized Medical Imaging and Graphics 109, "
    "102287, 2023, doi 10.1016/j.compmedimag.2023.102287"
)
LICENCE = "Apache-2.0 as stated on Kaggle (xiaoweixumedicalai/imagecas); the download on GitHub states none"

_LAYOUT = "a folder with 1-200/1.img.nii.gz, 1-200/1.label.nii.gz and so on, as the Kaggle archives unpack"
_SCAN_NAME = re.compile(r"(?P<number>\d{1,9})\.(?P<kind>img|label)\.nii(\.gz)?", re.IGNORECASE)
_SHEET_NAME = re.compile(r"imageCAS_data_split\.(csv|xlsx)", re.IGNORECASE)
_NUMBER = re.compile(r"(?P<number>\d{1,9})(\.0+)?(\.img\.nii\.gz)?")
_ARCHIVE = ".change2zip"
_UNPACK = "unpack the archive of the shard again"
_COPY_SHEET = "copy the sheet of the Kaggle download into the folder"
_PARTITION_STARTS = {"train": "training", "val": "validation", "test": "test"}


def read_imagecas(raw: Path | str, *, split: OfficialSplit = "Split-1") -> tuple[Manifest, list[CaseError]]:
    r"""List the cases of ImageCAS with one of the official splits.

    Shards, or any other subfolders, are searched for ``<n>.img.nii.gz`` and ``<n>.label.nii.gz``; the case is
    ``imagecas0001`` for ``<n>`` = 1. The split is read from ``imageCAS_data_split.csv`` or, where there is no such
    file, from ``imageCAS_data_split.xlsx``, sheet ``v2-latest`` (the ids of sheet ``v1`` belong to no file). A test
    case gets ``split="test"``. The official validation cases are fold 0, so that fold 0 trains and validates exactly
    as published; the training cases are dealt to folds 1 to 4. If the sheet has no validation case, the training cases
    are dealt to all folds. Folds depend on the sheet only and do not change when a case is missing.

    Kaggle ships each shard as a split zip archive, ``1-200.z01`` ... ``1-200.change2zip``. 7-Zip unpacks it after the
    last part is renamed to ``1-200.zip``; archives are not read here.

    Headers are read, voxels are not. A case is left out and reported if its image is damaged, its label has another
    grid, one of its files is missing, or the sheet does not list it. Cases of the sheet without files are also
    reported.

    Args:
        raw: the folder that holds the shards and the split sheet, at any depth.
        split: the sheet's column.

    Returns:
        The manifest, and one error for each case or run of cases left out.

    Raises:
        UsageError: the folder is missing or holds no unpacked case, or the sheet is missing, cannot be read, or lists
            none of the cases.

    Example:
        >>> import tempfile, nibabel, numpy
        >>> raw = Path(tempfile.mkdtemp())
        >>> (raw / "1-200").mkdir()
        >>> volume = nibabel.Nifti1Image(numpy.zeros((4, 4, 4), numpy.uint8), numpy.eye(4))
        >>> for name in ("1.img", "1.label", "2.img"):
        ...     nibabel.save(volume, raw / "1-200" / f"{name}.nii.gz")
        >>> _ = (raw / "imageCAS_data_split.csv").write_text("FileName,Split-1\n1,Training\n2,Testing\n")
        >>> manifest, errors = read_imagecas(raw)
        >>> [(case.case_id, case.split) for case in manifest.cases]
        [('imagecas0001', 'training')]
        >>> [str(error) for error in errors]
        ['imagecas0002: label: got no file, expected 2.label.nii.gz. Fix: unpack the archive of the shard again.']

    References:
        Zeng et al., Computerized Medical Imaging and Graphics 109, 102287, 2023, arXiv:2211.01607.
    """
    files = list_files(Path(raw))
    scans = group_scans(files, _SCAN_NAME)
    require(scans, "raw", got=raw, expected=_LAYOUT, fix=_format_unpack_command(files))
    sheet = _find_sheet(Path(raw), files)
    partitions = _read_partitions(sheet, split)
    require(
        not partitions.keys().isdisjoint(scans),
        str(sheet),
        got=f"none of the cases {min(scans)} to {max(scans)}",
        expected=f"some of the cases in {raw}",
        fix=f"give the sheet {SHEET} of imageCAS_data_split.xlsx, or the folder of all shards",
    )
    folds = _assign_official_folds(partitions)
    cases, errors = collect(
        lambda number: _make_case(number, scans[number], partitions.get(number, ""), folds, split), sorted(scans)
    )
    errors += _report_missing_cases(number for number in partitions if number not in scans)
    manifest = Manifest(
        "ImageCAS",
        "CT angiography",
        dict(STRUCTURES),
        tuple(cases),
        reference=REFERENCE,
        licence=LICENCE,
        extra={"official_split": split},
    )
    return manifest, sorted(errors, key=lambda error: error.case_id)


def _format_unpack_command(files: Iterable[Path]) -> str:
    """Return the command that unpacks archives, or the fix of another folder."""
    archives = [path for path in files if path.suffix.lower() == _ARCHIVE]
    if not archives:
        return OTHER_FOLDER
    last, packed = archives[0].name, f"{archives[0].stem}.zip"
    return f"unpack the {len(archives)} archives with 7-Zip, as in `mv {last} {packed} && 7z x {packed}`"


def _report_missing_cases(numbers: Iterable[int]) -> Iterator[CaseError]:
    """Yield one error for each run of consecutive case numbers."""
    fix = "unpack the archive of the shard with 7-Zip, or remove the rows from the sheet"
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        ids = [_format_case_id(number) for _, number in run]
        name = ids[0] if len(ids) == 1 else f"{ids[0]}-{ids[-1][-4:]}"
        got = "no file" if len(ids) == 1 else f"no file of {len(ids)} cases"
        yield CaseError(name, "image", got=got, expected="an image of each case in the split sheet", fix=fix)


def _make_case(
    number: int, files: Mapping[str, Sequence[Path]], partition: str, folds: Mapping[str, int], split: OfficialSplit
) -> Case:
    case_id = _format_case_id(number)
    image, label = (
        select_single_file(case_id, key, files.get(kind, ()), name=f"{number}.{kind}.nii.gz", fix=_UNPACK)
        for key, kind in (("image", "img"), ("label", "label"))
    )
    require_case(
        partition in _PARTITION_STARTS.values(),
        case_id,
        split,
        got=partition,
        expected="Training, Validation or Testing",
        fix=f"correct the row of {number} in the split sheet, or move the files away",
    )
    check_scan_pair(image, label, case_id=case_id)
    return Case(
        case_id=case_id,
        patient_id=case_id,
        domain="imagecas",
        image=image,
        label=label,
        fold=folds.get(case_id),
        split="test" if partition == "test" else "training",
    )


def _assign_official_folds(partitions: Mapping[int, str]) -> dict[str, int]:
    training, validation = (
        {_format_case_id(number): "" for number, given in partitions.items() if given == partition}
        for partition in ("training", "validation")
    )
    if not validation:
        return assign_folds(training)
    dealt = {case_id: 1 + fold for case_id, fold in assign_folds(training, folds=4).items()}
    return dealt | dict.fromkeys(validation, 0)


def _format_case_id(number: int) -> str:
    return f"imagecas{number:04d}"


def _find_sheet(raw: Path, files: Iterable[Path]) -> Path:
    """Find the split sheet among the files of a raw folder.

    Of several sheets the uppermost one is taken, and of two in one folder the CSV file.

    Raises:
        UsageError: the folder has no split sheet.
    """
    sheets = [path for path in files if _SHEET_NAME.fullmatch(path.name)]
    require(
        sheets,
        "raw",
        got=raw,
        expected="a folder with imageCAS_data_split.xlsx, or .csv with the columns FileName and Split-1",
        fix=_COPY_SHEET,
    )
    return min(sheets, key=lambda path: (len(path.parts), path.suffix.lower(), path))


def _read_partitions(sheet: Path, split: OfficialSplit) -> dict[int, str]:
    """Read the partition of each case from the split sheet.

    A partition is ``training``, ``validation``, ``test``, or another text unchanged. The row of column names may follow
    a title, as in the official workbook; the first named column holds the case numbers.

    Raises:
        UsageError: the sheet cannot be read, has no column of that split, lists no case, or lists a case twice.
    """
    rows = [[cell.strip() for cell in row] for row in read_rows(sheet, sheet=SHEET)]
    while rows and split not in rows[0]:
        rows.pop(0)
    expected = f"the columns of the official sheet {SHEET}"
    require(rows, str(sheet), got=f"no column {split}", expected=expected, fix=_COPY_SHEET)
    heading, *rows = rows
    column = heading.index(split)
    first = next(at for at, cell in enumerate(heading) if cell)
    partitions: dict[int, str] = {}
    for row in rows:
        if len(row) > first and (match := _NUMBER.fullmatch(row[first])):
            number = int(match["number"])
            require(number not in partitions, str(sheet), got=f"case {number} twice", expected="one row for each case")
            text = row[column] if len(row) > column else ""
            known = (name for start, name in _PARTITION_STARTS.items() if text.lower().startswith(start))
            partitions[number] = next(known, text)
    expected = f"case numbers in the column {heading[first]}"
    require(partitions, str(sheet), got="no case", expected=expected, fix=_COPY_SHEET)
    return partitions


def _make_reader(split: OfficialSplit) -> Reader:
    return Reader(
        partial(read_imagecas, split=split),
        "ImageCAS",
        re.compile(rf"(.*/)?({_SCAN_NAME.pattern}|imagecas_data_split\.\w+|\d+-\d+\.(change2)?zip)", re.IGNORECASE),
        official_split=split,
        vessels=STRUCTURES,
    )


SPLIT1, SPLIT2, SPLIT3, SPLIT4 = map(_make_reader, get_args(OfficialSplit))
