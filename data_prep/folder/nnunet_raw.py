"""Layout of nnU-Net's raw data sets."""

import re
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.folder.folder_options import FolderOptions
from data_prep.folder.label_names import read_about, read_channels
from data_prep.folder.listing import Listing, join, join_channels, read_object
from uumamba.data.case import MANIFEST_NAME, Case, Split
from uumamba.data.case_files import image_stem, list_volumes
from uumamba.data.open_scan import SCAN_SUFFIXES
from uumamba.runtime.errors import CaseError, UsageError, require
from uumamba.runtime.text_files import load_json

SPLITS_NAME = "splits_final.json"
_CHANNEL = re.compile(r"(?P<case_id>.+)_(?P<channel>\d{4})")
_FOLDERS: Mapping[Split, tuple[str, str]] = {"training": ("imagesTr", "labelsTr"), "test": ("imagesTs", "labelsTs")}


def list_nnunet(raw: Path, options: FolderOptions) -> Listing:
    """List a raw data set of nnU-Net.

    Images are ``imagesTr/<case_id>_0000.nii.gz`` with a number for each of ``channel_names``, label maps
    ``labelsTr/<case_id>.nii.gz``; ``file_ending`` may be of any format that can be read. If every image has the number
    0000 only, its file holds all channels, as a PNG file in colours. Cases of ``imagesTs`` are test cases.

    With ``splits_final.json``, which nnU-Net keeps in its preprocessed folder, folds are those of the file.

    Raises:
        UsageError: a file is damaged or a key is missing, or the splits are no cross-validation of the cases.
    """
    file = raw / MANIFEST_NAME
    stored = read_object(file)
    channels, ending = read_channels(stored, file=str(file)), stored.get("file_ending", ".nii.gz")
    require(channels, f"{file}: channel_names", got="nothing", expected="the name of each channel")
    require(
        ending in SCAN_SUFFIXES,
        f"{file}: file_ending",
        got=ending,
        expected=f"one of {', '.join(sorted(SCAN_SUFFIXES))}",
        fix="convert the files",
    )
    cases: list[Case] = []
    failures: list[CaseError] = []
    if isinstance(listed := stored.get("dataset"), Mapping):
        cases = [_read_entry(raw, case_id, entry, f"{file}: dataset") for case_id, entry in listed.items()]
    splits: tuple[Split, ...] = ("test",) if cases else ("training", "test")
    for split in splits:
        found, misnamed = _list_split(raw, split, _count_files(raw, len(channels)), ending)
        cases, failures = [*cases, *found], [*failures, *misnamed]
    training = {case.case_id for case in cases if case.split == "training"}
    folds = read_splits(raw / SPLITS_NAME, {*training, *(failure.case_id for failure in failures)})
    cases = [replace(case, fold=folds.get(case.case_id)) for case in cases]
    return Listing(cases, failures, channels, read_about(stored, file=str(file)))


def read_splits(path: Path, case_ids: Collection[str]) -> dict[str, int]:
    """Read the fold that validates on each case; nothing without a file.

    Args:
        path: a list with the case ids of ``train`` and ``val`` of each fold.
        case_ids: the training cases.

    Raises:
        UsageError: the file is damaged, an id is unknown, or a fold does not train on every case that it does not
            validate on.
    """
    if not path.is_file():
        return {}
    fix = f"correct or remove {path.name}"
    try:
        listed = [({*split["train"]}, {*split["val"]}) for split in load_json(path)]
    except (OSError, ValueError, KeyError, TypeError):
        got, expected = "another content or a damaged file", "a list of folds with train and val"
        raise UsageError(str(path), got=got, expected=expected, fix=fix) from None
    known, folds = {*case_ids}, dict[str, int]()
    for fold, (train, val) in enumerate(listed):
        _check_split(known, train, val, key=f"{path}: {fold}", fix=fix)
        for case_id in sorted(val & folds.keys()):
            got = f"{case_id} in val of {folds[case_id]} and {fold}"
            raise UsageError(str(path), got=got, expected="one fold for each case", fix=fix)
        folds |= dict.fromkeys(val, fold)
    return folds


def _check_split(known: Set[str], train: Set[str], val: Set[str], *, key: str, fix: str) -> None:
    """Check that a fold's two lists divide the known cases."""
    unknown, wrong = sorted((train | val) - known, key=str), sorted(known - train - val) or sorted(train & val)
    require(not unknown, key, got=", ".join(map(str, unknown[:3])), expected="cases with files in imagesTr", fix=fix)
    got = f"{', '.join(wrong[:3])} in both or none"
    require(not wrong, key, got=got, expected="every case in either train or val", fix=fix)


def _count_files(raw: Path, channels: int) -> int:
    """Count the files of an image: one a channel, or one."""
    paths = (path for images, _ in _FOLDERS.values() for path in (raw / images).glob("*"))
    found = (_CHANNEL.fullmatch(image_stem(path)) for path in paths)
    return channels if any(int(match["channel"]) > 0 for match in found if match) else 1


def _list_split(raw: Path, split: Split, files: int, ending: str) -> tuple[list[Case], list[CaseError]]:
    images, labels = (raw / name for name in _FOLDERS[split])
    case_ids: set[str] = set()
    failures: list[CaseError] = []
    for path in list_volumes(images) if images.is_dir() else ():
        stem = image_stem(path)
        match = _CHANNEL.fullmatch(stem)
        if path.name.endswith(ending) and match and int(match["channel"]) < files:
            case_ids.add(match["case_id"])
        else:
            expected = f"a name that ends in _0000{ending}" + (f" to _{files - 1:04d}{ending}" if files > 1 else "")
            fix = f"rename or convert the file, or correct {MANIFEST_NAME}"
            case_id = match["case_id"] if match else stem
            failures.append(CaseError(case_id, "image", got=path.name, expected=expected, fix=fix))
    for path in list_volumes(labels) if labels.is_dir() else ():
        case_ids.add(image_stem(path))
    case_ids -= {failure.case_id for failure in failures}
    needs_label = split == "training"
    return [_make_case(images, labels, each, files, ending, needs_label) for each in sorted(case_ids)], failures


def _make_case(images: Path, labels: Path, case_id: str, files: int, ending: str, needs_label: bool) -> Case:
    paths = [images / f"{case_id}_{channel:04d}{ending}" for channel in range(files)]
    label = labels / f"{case_id}{ending}"
    return Case(
        case_id,
        "",
        "",
        join_channels(paths),
        label=label if needs_label or label.exists() else None,
        split="training" if needs_label else "test",
    )


def _read_entry(raw: Path, case_id: str, entry: Any, key: str) -> Case:
    """Read a case that ``dataset.json`` gives by paths."""
    images: Sequence[Any] = entry.get("images", ()) if isinstance(entry, Mapping) else ()
    label = entry.get("label") if isinstance(entry, Mapping) else None
    is_valid = isinstance(images, list) and images and all(isinstance(path, str) for path in (*images, label))
    require(is_valid, f"{key}.{case_id}", got=entry, expected="images and label")
    paths = [join(raw, path) for path in images]
    return Case(case_id, "", "", join_channels(paths), label=join(raw, str(label)))
