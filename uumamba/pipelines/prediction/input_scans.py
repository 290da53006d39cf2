"""Scans to segment, found in the paths that a user gives."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from uumamba.data.case import Case, Manifest, Split
from uumamba.data.case_files import (
    ImagePath,
    add_case,
    check_channel_order,
    find_scans,
    group_channels,
    is_manifest,
    name_case,
)
from uumamba.data.channels import ONE_CHANNEL, describe_channels
from uumamba.pipelines.datasets import read_channel_names
from uumamba.pipelines.prediction.label_files import name_label_map
from uumamba.runtime.errors import require

Input = Path | str | Sequence[Path | str]
"""Scan, folder or manifest; or the files of one case, one for each channel."""


def find_inputs(
    inputs: Iterable[Input],
    *,
    channels: Sequence[str] = ONE_CHANNEL,
    split: Split | None = None,
    fold: int | None = None,
    domains: Collection[str] | None = None,
    case_ids: Collection[str] | None = None,
) -> dict[str, ImagePath]:
    """Find the case id and paths of every input scan.

    Of a manifest, only the selected cases are inputs.

    Raises:
        UsageError: a path is missing, nothing is found, two scans share a case id, or a manifest has other channels.
    """
    found: dict[str, ImagePath] = {}
    select = partial(Manifest.select, split=split, fold=fold, domains=domains, case_ids=case_ids)
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
            for case_id, scan in _find_scans(Path(each), select, channels).items():
                add_case(found, case_id, scan)
    for case_id, scan in group_channels(files, channels, option="--input").items():
        add_case(found, case_id, scan)
    require(found, "--input", got="no scan", expected="NIfTI, MHA or PNG files, folders of them, or a manifest")
    return found


def _find_scans(
    path: Path, select: Callable[[Manifest], Iterable[Case]], channels: Sequence[str]
) -> Mapping[str, ImagePath]:
    require(path.exists(), "--input", got=path, expected="a scan, a folder of scans or a manifest")
    if is_manifest(path):
        manifest = Manifest.read(path)
        _check_channels(manifest, channels, path)
        return {case.case_id: case.image for case in select(manifest)}
    if not path.is_dir():
        return {name_case(path): path}
    if len(channels) > 1:
        _check_named_order(path, channels)
    scans = find_scans(path, option="--input", channels=channels)
    cines = {name for name in scans if name.endswith("_4d") and len(channels) == 1}
    cut = {name for name in cines if any(each.startswith(f"{name.removesuffix('_4d')}_frame") for each in scans)}
    no_scans = {f"{name}_gt" for name in scans} | cut
    return {name: scan for name, scan in scans.items() if name not in no_scans}


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


def check_inputs_kept(cases: Mapping[str, ImagePath], inputs: Iterable[Input], out: Path) -> None:
    """Raise if a label map would replace an input file.

    Raises:
        UsageError: a file in ``out`` that prediction would write is an input, or an image or label of a manifest.
    """
    given = {path.resolve() for image in cases.values() for path in ([image] if isinstance(image, Path) else image)}
    single = (Path(each) for each in inputs if isinstance(each, Path | str))
    for path in filter(is_manifest, single):
        given |= {file.resolve() for case in Manifest.read(path).cases for file in case.files}
    for case_id, image in cases.items():
        target = out / name_label_map(case_id, image)
        require(target.resolve() not in given, "--out", got=out, expected=f"a folder without the input {target.name}")
