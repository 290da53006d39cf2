"""Files of a folder, and the case that each belongs to.

Preparing, prediction and evaluation find cases here, so that a file is the same case in all of them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uumamba.data.case import MANIFEST_NAME
from uumamba.data.channels import ONE_CHANNEL, describe_channels
from uumamba.data.formats.dicom_headers import has_magic
from uumamba.data.formats.dicom_studies import DicomSeries
from uumamba.data.formats.png import PNG_SUFFIXES
from uumamba.data.open_scan import DICOM_SUFFIX, SCAN_SUFFIXES
from uumamba.data.series_choice import SeriesWish, find_studies
from uumamba.data.shown_text import check_shown
from uumamba.data.warn import warn_repaired
from uumamba.runtime.errors import CaseError, UsageError, require
from uumamba.runtime.text_files import load_json

_SEGMENTATION = ".seg"
_CHANNEL = re.compile(r"_\d{4}$")
_FIRST_CHANNEL = "_0000"
_DEEPEST = 6
FilePath = Path | tuple[Path, ...]
"""File or folder of an image, or one file for each channel."""
ImagePath = FilePath | DicomSeries
"""File, folder or DICOM series of an image, or one file for each channel."""


def list_paths(image: ImagePath) -> tuple[Path, ...]:
    """List the paths of an image; of a DICOM series its folder.

    Example:
        >>> list_paths(Path("a.nii")), list_paths(DicomSeries(Path("study"), (Path("study/1.dcm"),)))
        ((PosixPath('a.nii'),), (PosixPath('study'),))
    """
    if isinstance(image, tuple):
        return image
    return (image.path if isinstance(image, DicomSeries) else image,)


def image_suffix(path: Path) -> str:
    """Return a scan's suffix, such as ``.nii.gz`` or ``.seg.nrrd``.

    The suffix of other files is empty.
    """
    name = path.name.lower()
    suffix = next((each for each in (*SCAN_SUFFIXES, DICOM_SUFFIX) if name.endswith(each)), "")
    is_segmentation = suffix != "" and name.removesuffix(suffix).endswith(_SEGMENTATION)
    length = len(suffix) + is_segmentation * len(_SEGMENTATION)
    return path.name[len(path.name) - length :]


def image_stem(path: Path) -> str:
    """Return a scan's file name without its suffix.

    Example:
        >>> image_stem(Path("patient001_0000.nii.gz"))
        'patient001_0000'
    """
    return path.name.removesuffix(image_suffix(path))


def name_case(path: Path) -> str:
    """Return a file's case id, its name without suffixes.

    These are the image suffix and nnU-Net's first channel, ``_0000``.

    Example:
        >>> name_case(Path("patient001_frame01_0000.nii.gz")), name_case(Path("labels/a.seg.nrrd"))
        ('patient001_frame01', 'a')
    """
    return image_stem(path).removesuffix(_FIRST_CHANNEL)


def list_volumes(folder: Path) -> list[Path]:
    """List a folder's scans and label maps by name.

    Hidden files are left out; DICOM files are no volumes. A PNG next to files of another format is a preview, and left
    out with a warning.
    """
    files = [path for path in folder.iterdir() if not path.name.startswith(".")]
    volumes = sorted(path for path in files if image_suffix(path).lower() not in ("", DICOM_SUFFIX))
    pictures = list(filter(is_picture, volumes))
    if not pictures or not any(map(_is_scan_or_slice, files)):
        return volumes
    _warn_left_out(folder, [path.name for path in pictures])
    return [path for path in volumes if path not in pictures]


def is_picture(path: Path) -> bool:
    """Return whether a file is a PNG."""
    return image_suffix(path).lower() in PNG_SUFFIXES


def find_cases(folder: Path, *, option: str) -> dict[str, Path]:
    """Find each case's file in a folder.

    Args:
        folder: its volumes are cases.
        option: command-line option that gave the folder, for errors.

    Raises:
        UsageError: two files are one case, or channels of one case.
    """
    found: dict[str, Path] = {}
    volumes = list_volumes(folder)
    stems = {image_stem(path) for path in volumes}
    for path in volumes:
        stem = image_stem(path)
        first = _CHANNEL.sub(_FIRST_CHANNEL, stem)
        require(
            first == stem or first not in stems,
            option,
            got=f"{first} and {stem} in {folder}",
            expected="one channel per case",
            fix="give the channel that the model takes, or rename two cases",
        )
        add_case(found, name_case(path), path)
    return found


def group_channels(volumes: Iterable[Path], names: Sequence[str], *, option: str) -> dict[str, FilePath]:
    """Group files ``<case>_0000``, ``<case>_0001``, ... into cases with channels.

    Every case gets the paths of all channels, also of missing ones, which the reader refuses by name. Other files hold
    all channels, and so do files ``<case>_0000`` without ``<case>_0001`` if no file has a higher number, as nnU-Net
    names colour pictures.

    Args:
        volumes: the files; the channels of a case are in one folder.
        names: names of the channels.
        option: command-line option that gave the files, for errors.

    Raises:
        UsageError: a case has more channels, or two files for one.

    Example:
        >>> group_channels([Path("a_0000.nii"), Path("a_0001.nii"), Path("b.nii")], ["T1", "T2"], option="--input")
        {'a': (PosixPath('a_0000.nii'), PosixPath('a_0001.nii')), 'b': PosixPath('b.nii')}
    """
    files = sorted(volumes)
    stems = {(path.parent, image_stem(path)): path for path in files}
    numbers = {int(stem[-4:]) for _, stem in stems if _CHANNEL.search(stem)}
    found: dict[str, FilePath] = {}
    for path in files:
        suffix = image_suffix(path)
        stem = path.name.removesuffix(suffix)
        case_id, number = _CHANNEL.sub("", stem), stem[-4:]
        second = path.with_name(f"{case_id}_0001{suffix}")  # may exist though only the first file is given
        if numbers == {0} and not second.exists():
            add_case(found, name_case(path), path)
            continue
        has_first = (path.parent, f"{case_id}{_FIRST_CHANNEL}") in stems
        if case_id == stem or not (has_first or int(number) < len(names)):
            add_case(found, stem, path)
            continue
        require(
            int(number) < len(names),
            option,
            got=str(path),
            expected=f"only {describe_channels(names)} of {case_id}",
            fix="give the channels that the model takes, numbered from _0000 on",
        )
        channels = tuple(
            stems.get((path.parent, name := f"{case_id}_{index:04d}"), path.with_name(f"{name}{suffix}"))
            for index in range(len(names))
        )
        require(path in channels, case_id, got=f"two files of {stem}", expected="one file", fix="rename one file")
        add_case(found, case_id, channels)
    return found


def check_channel_order(paths: Sequence[Path], *, option: str) -> None:
    """Raise if files ``_0000``, ``_0001``, ... are listed in another order.

    Raises:
        UsageError: the files are numbered from 0 on, but not in their order.
    """
    stems = [image_stem(path) for path in paths]
    numbers = [int(stem[-4:]) for stem in stems if _CHANNEL.search(stem)]
    require(
        numbers == sorted(numbers) or sorted(numbers) != list(range(len(paths))),
        option,
        got=", ".join(path.name for path in paths),
        expected="the channels in the order of their numbers",
        fix="list _0000 first",
    )


def add_case(found: dict[str, Any], case_id: str, path: ImagePath) -> None:
    """Add a case's file or files to ``found``.

    Raises:
        UsageError: two files have one case id.
    """
    first = found.setdefault(case_id, path)
    require(first == path, case_id, got=f"{first} and {path}", expected="one file", fix="rename one file")


def check_file_name(case_id: str) -> None:
    """Raise a case error for a name with hidden characters.

    A manifest refuses such names, and no table or message could tell them apart.

    Raises:
        CaseError: the name holds a newline, an escape, an invisible character or a mark of the text direction.
    """
    try:
        check_shown(case_id, "case_id")
    except UsageError as error:
        raise CaseError(
            case_id, "case_id", got=error.got, expected=error.expected, fix=f"rename the file: {error.fix}"
        ) from None


def find_scans(
    folder: Path, *, option: str, channels: Sequence[str] = ONE_CHANNEL, series: SeriesWish | None = None
) -> Mapping[str, ImagePath]:
    """Find each case's scan in a folder and its sub-folders.

    The volumes of a folder are its cases. A folder with DICOM files and no volumes belongs to a study, with its
    sub-folders; one series of each study is a case, see :func:`uumamba.data.series_choice.find_studies`. Any other
    folder is searched in its sub-folders; links to folders are not followed. Scans in sub-folders of a folder with
    volumes, volumes below DICOM files, and DICOM files in a folder with volumes are left out with a warning. With
    several channels, the files of a folder are grouped by :func:`group_channels`, and each folder with DICOM files is
    one series.

    Args:
        folder: it is searched.
        option: command-line option that gave the folder, for errors.
        channels: names of the channels of an image.
        series: series wanted of each study.

    Raises:
        UsageError: two scans are one case, or no series of a study is wanted.
    """
    found: dict[str, ImagePath] = {}
    slices: list[Path] = []
    for each in _list_leaves(folder, _DEEPEST):
        volumes: Mapping[str, ImagePath] = (
            find_cases(each, option=option)
            if len(channels) == 1
            else group_channels(list_volumes(each), channels, option=option)
        )
        if volumes or len(channels) > 1 or not any(map(_is_scan_or_slice, filter(Path.is_file, each.iterdir()))):
            for case_id, path in (volumes or {each.resolve().name: each}).items():
                add_case(found, case_id, path)
        else:
            slices += [each, *_list_slices_below(each, _DEEPEST)]
        if left_out := _list_left_out(each, has_volumes=bool(volumes)):
            _warn_left_out(each, left_out)
    for case_id, image in find_studies(slices, series or SeriesWish()):
        add_case(found, case_id, image)
    return found


def _warn_left_out(folder: Path, names: Sequence[str]) -> None:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    warn_repaired(str(folder), f"left out are {shown}; give them as inputs of their own if they are scans")


def _list_left_out(folder: Path, *, has_volumes: bool) -> list[str]:
    """List sub-folders with scans, and DICOM files next to volumes.

    Of a folder with DICOM files, the sub-folders with volumes.
    """
    entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    below = (path for path in entries if path.is_dir() and not (path.is_symlink() or image_suffix(path)))
    slices = (path for path in entries if has_volumes and image_suffix(path).lower() == DICOM_SUFFIX)
    no_scans = ("",) if has_volumes else ("", DICOM_SUFFIX)
    scans = (path for path in below if any(image_suffix(each).lower() not in no_scans for each in path.rglob("*")))
    return [path.name for path in (*scans, *slices)]


def _list_slices_below(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the sub-folders with DICOM files and no volumes."""
    below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    for path in below if depth else ():
        if path.name.startswith("."):
            continue
        files = [each for each in path.iterdir() if each.is_file() and not each.name.startswith(".")]
        has_volumes = any(image_suffix(each).lower() not in ("", DICOM_SUFFIX, *PNG_SUFFIXES) for each in files)
        if not has_volumes and any(map(_is_scan_or_slice, files)):
            yield path
        yield from _list_slices_below(path, depth - 1)


def _list_leaves(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders with scans.

    A folder with neither scans nor sub-folders is one of them. A PNG above scans of another format is no scan.
    """
    entries = sorted((path for path in folder.iterdir() if not path.name.startswith(".")), key=lambda path: path.name)
    below = [path for path in entries if path.is_dir() and not path.is_symlink()]
    files = list(filter(Path.is_file, entries))
    has_scans = any(map(_is_scan_or_slice, files)) or (
        any(map(is_picture, files)) and not any(_is_scan_or_slice(path) for path in folder.rglob("*"))
    )
    if has_scans or not below or depth == 0:
        yield folder
        return
    for path in below:
        yield from _list_leaves(path, depth - 1)


def _is_scan_or_slice(path: Path) -> bool:
    """Return whether a file, other than PNG, is a scan or slice.

    Exported discs hold a ``DICOMDIR`` and files such as ``README`` next to the folders of the scans.
    """
    if image_suffix(path):
        return not is_picture(path)
    try:
        return path.name.upper() != "DICOMDIR" and has_magic(path)
    except OSError:
        return True  # the series' reader names the file that cannot be read


def is_manifest(path: Path) -> bool:
    """Return whether a path is a manifest or its folder.

    Every ``.json`` file is taken for a manifest. nnU-Net, the Decathlon and others leave a ``dataset.json`` of their
    own in a folder of scans; a manifest's entries have a ``case_id``.
    """
    if not path.is_dir():
        return path.suffix == ".json"
    return lists_case_ids(path / MANIFEST_NAME)


def lists_case_ids(path: Path) -> bool:
    """Return whether a ``dataset.json`` is a manifest, or damaged."""
    try:
        if not path.is_file():
            return False
        stored = load_json(path)
    except (OSError, ValueError):
        return True  # the manifest's reader names the damage
    parts = [stored[key] for key in ("training", "test") if key in stored] if isinstance(stored, dict) else []
    entries = [entry for part in parts if isinstance(part, list) for entry in part]
    return bool(parts) and all(isinstance(entry, dict) and "case_id" in entry for entry in entries)
