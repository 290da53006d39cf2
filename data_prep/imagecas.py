"""ImageCAS, a thousand coronary CT angiographies: from its shards and split sheet to a manifest."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from data_prep.folds import assign_folds
from data_prep.imagecas_split import PARTITIONS, SHEET, OfficialSplit, find_sheet, read_partitions
from data_prep.multipart_zip import MultipartZip, find_multipart_zips
from data_prep.scan_files import check_pair, files_below
from uumamba.data.case import Case, Manifest
from uumamba.runtime.errors import CaseError, UsageError

STRUCTURES: Mapping[str, int] = {"coronary": 1}
REFERENCE = (
    "A. Zeng, C. Wu, G. Lin, W. Xie et al., ImageCAS: A Large-Scale Dataset and Benchmark for Coronary Artery "
    "Segmentation based on Computed Tomography Angiography Images, Computerized Medical Imaging and Graphics 109, "
    "102287, 2023, doi 10.1016/j.compmedimag.2023.102287"
)
LICENCE = "Apache-2.0 as stated on Kaggle (xiaoweixumedicalai/imagecas); the download on GitHub states none"

_EXPECTED = "expected 1-200/1.img.nii.gz, 1-200/1.label.nii.gz and so on, as the Kaggle archives unpack"
_SCAN_NAME = re.compile(r"(?P<number>\d{1,9})\.(?P<kind>img|label)\.nii(\.gz)?", re.IGNORECASE)
_SHARD_NAME = re.compile(r"(?P<first>\d{1,9})-(?P<last>\d{1,9})")
_RESTORE = "restore it from the archive of its shard"
_Scans = dict[int, dict[str, list[Path]]]


def read_imagecas(raw: Path | str, *, split: OfficialSplit = "Split-1") -> tuple[Manifest, list[CaseError]]:
    r"""List ImageCAS's cases with one of the official splits.

    Shards, or any other subfolders, are searched for ``<n>.img.nii.gz`` and ``<n>.label.nii.gz``; the case is
    ``imagecas0001`` for ``<n>`` = 1. The split stands in ``imageCAS_data_split.xlsx``, sheet ``v2-latest`` (``v1``
    has ids that no file bears), or in a file of the same columns named ``imageCAS_data_split.csv``, which wins. A
    test case gets ``split="test"``. The official validation cases are fold 0, so that fold 0 trains and validates
    exactly as published; the training cases are dealt to folds 1 to 4. Where the sheet has no validation case, all
    folds are dealt. Folds come from the sheet alone and do not move when a case is lost.

    Headers are read, voxels are not: a damaged image, or a label that does not lie on its image, is left out and
    reported, as are a case whose other file is missing, a case outside the sheet, cases of the sheet without files,
    and each shard that is still packed or whose archive lacks a part.

    Args:
        raw: the folder that holds the shards and the split sheet, at any depth.
        split: the sheet's column.

    Returns:
        The manifest, and one error for each case, run of cases or shard left out.

    Raises:
        UsageError: the folder is missing or holds no unpacked case, the sheet is missing or cannot be read, or the
            cases it lists are other ones.

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
        ['imagecas0002: its label 2.label.nii.gz is missing; restore it from the archive of its shard.']

    References:
        Zeng et al., Computerized Medical Imaging and Graphics 109, 102287, 2023, arXiv:2211.01607.
    """
    files = _files_of(Path(raw))
    scans = _find_scans(files)
    archives = find_multipart_zips(files)
    if not scans:
        raise UsageError(_nothing_unpacked(Path(raw), archives))
    partitions = read_partitions(find_sheet(Path(raw), files), split)
    if partitions.keys().isdisjoint(scans):
        raise UsageError(
            f"None of the {len(partitions)} cases of the split sheet has files in {raw}, which has {_runs(scans)}; "
            f"give the sheet {SHEET} of imageCAS_data_split.xlsx, or the folder of all shards."
        )
    folds = _folds(partitions)
    cases: list[Case] = []
    errors = [*_packed(archives, scans, partitions), *_absent(partitions, scans, archives)]
    for number in sorted(scans):
        try:
            cases.append(_case(number, scans[number], partitions, folds, split))
        except CaseError as error:
            errors.append(error)
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


def _files_of(raw: Path) -> list[Path]:
    if not raw.is_dir():
        found = "is a file" if raw.exists() else "does not exist"
        raise UsageError(f"The raw ImageCAS folder {raw} {found}; {_EXPECTED}.")
    return files_below(raw)


def _find_scans(files: Iterable[Path]) -> _Scans:
    """Images and labels by case number; a list holds more than one file where a case lies in two places."""
    scans: _Scans = {}
    for path in files:
        if match := _SCAN_NAME.fullmatch(path.name):
            kinds = scans.setdefault(int(match["number"]), {"img": [], "label": []})
            kinds[match["kind"].lower()].append(path)
    return scans


def _nothing_unpacked(raw: Path, archives: Sequence[MultipartZip]) -> str:
    if not archives:
        return f"No case was found in {raw}; {_EXPECTED}."
    problems = [f"{archive.name}: {problem}" for archive in archives if (problem := archive.problem())]
    if problems:
        return f"The archives in {raw} are still packed, and not whole ({'; '.join(problems)}); download those anew."
    commands = "; ".join(f"({archive.unpack_command()})" for archive in archives)
    return f"The {len(archives)} archives in {raw} are still packed; unpack them with 7-Zip: {commands}"


def _packed(archives: Iterable[MultipartZip], scans: _Scans, partitions: Iterable[int]) -> Iterator[CaseError]:
    """Archives whose cases are not there, or not all of them because the archive is not whole."""
    listed = list(partitions)
    for archive in archives:
        problem, cure = archive.problem(), "download the archive's parts anew and unpack it"
        lost = _lost(archive, scans, listed)
        if _is_packed(archive, scans):
            unpack = f"unpack it: {archive.unpack_command()}"
            yield CaseError(archive.name, problem or "this shard is still packed", cure if problem else unpack)
        elif problem and lost:
            yield CaseError(archive.name, f"{problem}, and of its listed cases {_runs(lost)} lack their files", cure)


def _absent(partitions: Iterable[int], scans: _Scans, archives: Iterable[MultipartZip]) -> Iterator[CaseError]:
    """Cases of the sheet without files, a run at a time; an archive that is packed or not whole is reported itself."""
    told = [_shard(archive) for archive in archives if _is_packed(archive, scans) or archive.problem()]
    lost = [number for number in partitions if number not in scans and not any(number in shard for shard in told)]
    for first, last in _consecutive(lost):
        name = _case_id(first) if first == last else f"{_case_id(first)}-{last:04d}"
        cure = f"{_RESTORE}, or take the row out of the sheet"
        yield CaseError(name, f"the split sheet lists {last - first + 1} case(s) here without any file", cure)


def _is_packed(archive: MultipartZip, scans: _Scans) -> bool:
    """Whether no case of the archive's shard is unpacked."""
    shard = _shard(archive)
    return not any(number in shard for number in scans)


def _lost(archive: MultipartZip, scans: _Scans, listed: Iterable[int]) -> list[int]:
    """The archive's cases that the sheet lists and that are not there."""
    shard = _shard(archive)
    return [number for number in listed if number in shard and number not in scans]


def _shard(archive: MultipartZip) -> range:
    match = _SHARD_NAME.fullmatch(archive.name)
    return range(int(match["first"]), int(match["last"]) + 1) if match else range(0)


def _case(
    number: int,
    found: Mapping[str, list[Path]],
    partitions: Mapping[int, str],
    folds: Mapping[str, int],
    split: OfficialSplit,
) -> Case:
    case_id = _case_id(number)
    image, label = (_only_file(case_id, number, kind, found[kind]) for kind in ("img", "label"))
    if number not in partitions:
        raise CaseError(case_id, "the split sheet does not list it", f"add a row for {number}, or move its files away")
    partition = partitions[number]
    if partition not in PARTITIONS:
        cure = "write Training, Validation or Testing"
        raise CaseError(case_id, f"the split sheet gives {partition!r} as its {split}", cure)
    check_pair(image, label, case_id=case_id)
    return Case(
        case_id=case_id,
        patient_id=case_id,
        domain="imagecas",
        image=image,
        label=label,
        fold=folds.get(case_id),
        split="test" if partition == "test" else "training",
    )


def _only_file(case_id: str, number: int, kind: str, paths: Sequence[Path]) -> Path:
    what = "image" if kind == "img" else "label"
    if not paths:
        raise CaseError(case_id, f"its {what} {number}.{kind}.nii.gz is missing", _RESTORE)
    if len(paths) > 1:
        raise CaseError(case_id, f"its {what} is found twice, as {paths[0]} and {paths[1]}", "move one of them away")
    return paths[0]


def _folds(partitions: Mapping[int, str]) -> dict[str, int]:
    members = {
        partition: {_case_id(number): "" for number, given in partitions.items() if given == partition}
        for partition in ("training", "validation")
    }
    if not members["validation"]:
        return assign_folds(members["training"])
    dealt = {case_id: 1 + fold for case_id, fold in assign_folds(members["training"], folds=4).items()}
    return dealt | dict.fromkeys(members["validation"], 0)


def _case_id(number: int) -> str:
    return f"imagecas{number:04d}"


def _runs(numbers: Iterable[int]) -> str:
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in _consecutive(numbers))


def _consecutive(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of whole numbers without a gap."""
    ordered = sorted(numbers)
    for _, run in groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0]):
        members = [number for _, number in run]
        yield members[0], members[-1]
