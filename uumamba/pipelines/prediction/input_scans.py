"""Scans to segment, found in the paths that a user gives."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from warnings import warn

from uumamba.data.case import Case, Manifest, Split
from uumamba.data.case_files import (
    ImagePath,
    add_case,
    check_channel_order,
    find_scans,
    group_channels,
    is_manifest,
    list_paths,
    name_case,
)
from uumamba.data.channels import ONE_CHANNEL, describe_channels
from uumamba.data.formats.dicom_studies import DicomSeries
from uumamba.data.series_choice import SeriesWish
from uumamba.data.zip_files import is_zip, unpacked
from uumamba.pipelines.datasets import read_channel_names
from uumamba.runtime.errors import require
from uumamba.runtime.files import describe_path

Input = Path | str | Sequence[Path | str]
"""Scan, folder, zip file or manifest; or the files of one case, one for each channel."""
ZipFolders = Mapping[Path, Path]
"""Folder into which each zip file is unpacked."""
_MOST_NAMED = 5


@contextmanager
def unpack_zips(inputs: Iterable[Input]) -> Iterator[ZipFolders]:
    """Unpack the zip files among the inputs; remove the folders afterwards.

    Raises:
        UsageError: a zip file is damaged, unsafe or too large.
    """
    with ExitStack() as stack:
        paths = dict.fromkeys(Path(each) for each in inputs if isinstance(each, Path | str))
        yield {path: stack.enter_context(unpacked(path, option="--input")) for path in paths if is_zip(path)}


def find_source(image: ImagePath, zips: ZipFolders) -> ImagePath:
    """Replace the folder of an unpacked zip file by the zip file.

    Example:
        >>> find_source(Path("/tmp/x/a/b.nii"), {Path("a.zip"): Path("/tmp/x/a")})
        PosixPath('a.zip/b.nii')
    """
    if isinstance(image, tuple):
        return tuple(_replace_folder(path, zips) for path in image)
    return _replace_folder(list_paths(image)[0], zips)


def _replace_folder(path: Path, zips: ZipFolders) -> Path:
    return next((file / path.relative_to(folder) for file, folder in zips.items() if path.is_relative_to(folder)), path)


def find_inputs(
    inputs: Iterable[Input],
    *,
    channels: Sequence[str] = ONE_CHANNEL,
    split: Split | None = None,
    fold: int | None = None,
    domains: Collection[str] | None = None,
    case_ids: Collection[str] | None = None,
    series: SeriesWish | None = None,
    zips: ZipFolders | None = None,
) -> dict[str, ImagePath]:
    """Find the case id and paths of every input scan.

    Of a manifest, only the selected cases are inputs; of a DICOM study, one series.

    Raises:
        UsageError: a path is missing, nothing is found, two scans share a case id, a manifest has other channels, or no
            series is wanted.
    """
    found: dict[str, ImagePath] = {}
    select = partial(Manifest.select, split=split, fold=fold, domains=domains, case_ids=case_ids)
    search = partial(find_scans, option="--input", channels=channels, series=series)
    files: list[Path] = []
    for each in inputs:
        if not isinstance(each, Path | str):
            paths = tuple(map(Path, each))
            require(paths, "--input", got=each, expected="the files of a case")
            check_channel_order(paths, option="--input")
            add_case(found, name_case(paths[0]), paths)
        elif len(channels) > 1 and Path(each).is_file() and not is_manifest(Path(each)):
            files.append(Path(each))
        else:
            folder = (zips or {}).get(Path(each), Path(each))
            scans = _find_scans(folder, select, channels, search)
            for case_id, scan in _name_study(scans, folder, is_unpacked=folder != Path(each)).items():
                add_case(found, case_id, scan)
    for case_id, scan in group_channels(files, channels, option="--input").items():
        add_case(found, case_id, scan)
    require(found, "--input", got="no scan", expected="NIfTI, MHA or PNG files, folders of them, or a manifest")
    names = series.names if series else ()
    is_study = any(isinstance(image, DicomSeries) for image in found.values())
    require(not names or is_study, "--series", got=", ".join(names), expected="a DICOM study as --input")
    return found


def _name_study(scans: Mapping[str, ImagePath], path: Path, *, is_unpacked: bool) -> Mapping[str, ImagePath]:
    """Name the only study of a folder or zip file after it."""
    (image, *others) = scans.values() or (None,)
    is_study = isinstance(image, DicomSeries) or (is_unpacked and isinstance(image, Path) and image.is_dir())
    return scans if others or image is None or not is_study else {path.resolve().name: image}


def _find_scans(
    path: Path,
    select: Callable[[Manifest], Iterable[Case]],
    channels: Sequence[str],
    search: Callable[[Path], Mapping[str, ImagePath]],
) -> Mapping[str, ImagePath]:
    require(path.exists(), "--input", got=describe_path(path), expected="a scan, a folder of scans or a manifest")
    if is_manifest(path):
        manifest = Manifest.read(path)
        _check_channels(manifest, channels, path)
        return {case.case_id: case.image for case in select(manifest)}
    if not path.is_dir():
        return {name_case(path): path}
    if len(channels) > 1:
        _check_named_order(path, channels)
    scans = search(path)
    cines = _find_cut_cines(scans) if len(channels) == 1 else []
    if cines:
        named = ", ".join(cines[:_MOST_NAMED]) + ", ..." * (len(cines) > _MOST_NAMED)
        warn(f"{path}: left out are cines next to their frames: {named}. To segment one, name its file.", stacklevel=2)
    no_scans = {f"{name}_gt" for name in scans}.union(cines)
    return {name: scan for name, scan in scans.items() if name not in no_scans}


def _find_cut_cines(names: Collection[str]) -> list[str]:
    """Find ACDC's cines, ``<patient>_4d``, whose frames are there too."""
    cut = {name.rpartition("_frame")[0] for name in names}
    return [name for name in names if name.endswith("_4d") and name.removesuffix("_4d") in cut]


def _check_channels(manifest: Manifest, channels: Sequence[str], path: Path) -> None:
    """Raise unless a manifest has the model's channels in its order.

    The name of an only channel is free.
    """
    is_same = len(manifest.channels) == len(channels) and (len(channels) == 1 or manifest.channels == tuple(channels))
    require(
        is_same,
        "--input",
        got=f"{path} with {describe_channels(manifest.channels)}",
        expected=describe_channels(channels) if len(channels) > 1 else "one channel, as the model's",
        fix="list the model's channels in this order, in the manifest's modality and images",
    )


def _check_named_order(folder: Path, channels: Sequence[str]) -> None:
    """Raise if a folder's ``dataset.json`` has the channels in another order."""
    named = read_channel_names(folder)
    require(
        named == tuple(channels) or sorted(named) != sorted(channels),
        "--input",
        got=f"{folder} with {describe_channels(named)}",
        expected=describe_channels(channels),
        fix="reorder the channels and their names in dataset.json",
    )


def check_inputs_kept(
    cases: Mapping[str, ImagePath], inputs: Iterable[Input], find_label_map: Callable[[str, ImagePath], Path]
) -> None:
    """Raise if a label map would replace an input file.

    Raises:
        UsageError: a label map that prediction would write is an input, or an image or label of a manifest.
    """
    given = {path.resolve() for image in cases.values() for path in list_paths(image)}
    single = (Path(each) for each in inputs if isinstance(each, Path | str))
    for path in filter(is_manifest, single):
        given |= {file.resolve() for case in Manifest.read(path).cases for file in case.files}
    for case_id, image in cases.items():
        target = find_label_map(case_id, image)
        require(
            target.resolve() not in given,
            "--out",
            got=target.parent,
            expected=f"a folder without the input {target.name}",
        )
