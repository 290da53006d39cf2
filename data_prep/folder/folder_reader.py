"""Reader of any folder, whose files give the layout."""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.folder.case_table import list_table, list_tables
from data_prep.folder.datalist import list_datalist, list_datalists
from data_prep.folder.folder_options import KEY, FolderOptions
from data_prep.folder.image_globs import list_pairs
from data_prep.folder.label_names import name_values
from data_prep.folder.label_values import find_label_values
from data_prep.folder.listing import Listing, read_object
from data_prep.folder.nnunet_raw import list_nnunet
from data_prep.folder.own_manifest import is_own, list_manifest
from data_prep.folds import complete_folds
from data_prep.raw_folder import collect
from data_prep.reader import Read, Reader
from data_prep.spreadsheet import read_rows
from uumamba.data.case import MANIFEST_NAME, Case, Manifest
from uumamba.data.case_files import check_file_name
from uumamba.runtime.errors import CaseError, require, require_case

LAYOUTS: Mapping[str, Callable[[Path, FolderOptions], Listing]] = {
    "nnunet": list_nnunet,
    "decathlon": list_datalist,
    "datalist": list_datalist,
    "pairs": list_pairs,
    "csv": list_table,
    "manifest": list_manifest,
}
_EXPECTED = (
    "a dataset.json of nnU-Net, the Decathlon, MONAI or uumamba, a CSV file with the columns image and label, or the "
    f"globs {KEY}.images and {KEY}.labels"
)
_DECATHLON_KEYS = {"training", "labels", "modality"}


def read_folder(raw: Path | str, **options: Any) -> Read:
    """List the cases of a folder in any common layout.

    Folds are those of the layout's files. Without any, patients get ``min(5, patients)`` folds, stratified by group, or
    by domain where there are no groups. A case without a patient is a patient of its own, and without a domain of the
    folder's. Files are looked for and not opened, except the label maps of a data set without names of structures.

    Args:
        raw: the folder, only read.
        options: those of :class:`data_prep.folder.folder_options.FolderOptions`.

    Returns:
        The manifest of the complete cases, and an error for each other case.

    Raises:
        UsageError: the folder has no layout, or several, a file of the layout or an option is wrong, a patient is in
            two folds, or no label map has a structure.

    Example:
        >>> import tempfile
        >>> raw = Path(tempfile.mkdtemp())
        >>> for name in ("images/p1.nii.gz", "images/p2.nii.gz", "labels/p1.nii.gz"):
        ...     (raw / name).parent.mkdir(exist_ok=True)
        ...     (raw / name).touch()
        >>> manifest, errors = read_folder(
        ...     raw, images="images/*.nii.gz", labels="labels/*.nii.gz", structures={"liver": 1}
        ... )
        >>> [(case.case_id, case.patient_id, case.fold) for case in manifest.cases]
        [('p1', 'p1', 1)]
        >>> print(errors[0])
        p2: label: got no file, expected one file by labels/*.nii.gz. Fix: add the file, or leave the other files ...
    """
    raw, chosen = Path(raw), FolderOptions(**options)
    require(raw.is_dir(), "raw", got=raw, expected="a folder")
    layout = recognise(raw) if chosen.layout == "auto" and chosen.case_list is None else _name_layout(chosen)
    listing = LAYOUTS[layout](raw, chosen)
    about: dict[str, Any] = {"name": raw.resolve().name, "structures": {}} | dict(listing.about) | chosen.labels_given()
    cases, doubles = _take_single(listing.cases)
    lost = [*listing.failures, *doubles]
    complete = partial(_complete, pattern=chosen.patient, domain=about["name"])
    cases, strangers = collect(complete, cases)
    cases = _complete_folds(cases, collect(complete, [_make_lost(each.case_id) for each in lost])[0])
    cases, incomplete = collect(partial(_check_files, channels=listing.channels), cases)
    failures = [*lost, *strangers, *incomplete]
    require(cases or failures, "raw", got=f"no case in {raw}", expected=f"files of the layout {layout}")
    if cases and not about["structures"]:
        values, unreadable = find_label_values(cases)
        about["structures"] = name_values(sorted(values - {about.get("ignore_value")}))
        failed = {failure.case_id for failure in unreadable}
        cases, failures = [case for case in cases if case.case_id not in failed], [*failures, *unreadable]
        fix = "give label maps with values above 0"
        require(about["structures"] or not cases, f"{KEY}.structures", got="only 0", expected="a structure", fix=fix)
    channels = listing.channels
    modality = channels if len(channels) > 1 else channels[0]
    manifest = Manifest(modality=modality, cases=tuple(cases), **about)
    return manifest, sorted(failures, key=lambda failure: failure.case_id)


def recognise(raw: Path) -> str:
    """Return the layout of a folder by its files.

    Raises:
        UsageError: the folder has none, or several.
    """
    named = raw / MANIFEST_NAME
    found = [_recognise_json(named)] if named.is_file() else ["datalist"] * bool(list_datalists(raw))
    found += ["csv"] * bool(list_tables(raw))
    if not found:
        _raise_damage(raw)
    got = "none of these" if not found else f"the layouts {' and '.join(found)}"
    fix = f"set {KEY}.layout to one of {', '.join(LAYOUTS)}" if found else ""
    require(len(found) == 1, str(raw), got=got, expected="one layout" if found else _EXPECTED, fix=fix)
    return found[0]


def _raise_damage(raw: Path) -> None:
    """Raise for the first table or JSON file that cannot be read."""
    for path in sorted(raw.glob("*.json")):
        read_object(path)
    for path in sorted(raw.glob("*.csv")):
        read_rows(path, sheet="")


def has_layout(raw: Path) -> bool:
    """Return whether a folder has files of a layout, one or several."""
    return (raw / MANIFEST_NAME).is_file() or bool(list_datalists(raw) or list_tables(raw))


def _name_layout(options: FolderOptions) -> str:
    if options.layout != "auto":
        return options.layout
    return "csv" if str(options.case_list).lower().endswith(".csv") else "datalist"


def _recognise_json(path: Path) -> str:
    """Return the layout of a ``dataset.json``."""
    stored = read_object(path)
    if is_own(stored):
        return "manifest"
    has_channels = any((path.parent / "imagesTr").glob("*_0000.*"))
    if "channel_names" in stored or (has_channels and "labels" in stored):
        return "nnunet"
    expected = "a dataset.json with channel_names (nnU-Net) or training (Decathlon, MONAI)"
    fix = f"restore the file, or set {KEY}.layout"
    require("training" in stored, str(path), got=f"the keys {', '.join(stored)}", expected=expected, fix=fix)
    return "decathlon" if stored.keys() >= _DECATHLON_KEYS else "datalist"


def _take_single(cases: Sequence[Case]) -> tuple[list[Case], list[CaseError]]:
    """Leave out every case whose id is not its own."""
    by_id: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_id[case.case_id].append(case)
    expected, fix = "one case of this id", "give each case an id of its own, such as in a column case"
    failures = [
        CaseError(
            case_id, "case_id", got=" and ".join(str(each.images[0]) for each in same[:2]), expected=expected, fix=fix
        )
        for case_id, same in by_id.items()
        if len(same) > 1
    ]
    return [same[0] for same in by_id.values() if len(same) == 1], failures


def _complete(case: Case, *, pattern: str | None, domain: str) -> Case:
    """Add patient and domain, and check the case id."""
    case_id = case.case_id
    check_file_name(case_id)
    is_plain = case_id == Path(case_id).name and case_id not in {"", ".", ".."}
    require_case(is_plain, case_id, "case_id", got=case_id, expected="a plain file name", fix="rename the case")
    patient = case.patient_id or case_id
    if pattern is not None:
        match = re.search(pattern, case_id)
        expected, fix = f"a case id with a match of {pattern}", f"correct {KEY}.patient, or rename the case"
        require_case(match and match[1], case_id, "patient", got=case_id, expected=expected, fix=fix)
        patient = match[1] if match else ""
    return replace(case, patient_id=patient, domain=case.domain or domain)


def _complete_folds(cases: Sequence[Case], lost: Sequence[Case]) -> list[Case]:
    """Complete folds that stay the same when the lost cases are corrected."""
    has_folds = any(case.fold is not None for case in cases)
    found = complete_folds(cases if has_folds else [*cases, *lost])
    return found[: len(cases)]


def _make_lost(case_id: str) -> Case:
    return Case(case_id, "", "", Path())


def _check_files(case: Case, *, channels: Sequence[str]) -> Case:
    """Check that a case's files exist, one for all channels or each."""
    count, expected = len(case.images), f"{len(channels)} files, for {', '.join(channels)}"
    fix = "add the missing channel"
    require_case(count in (1, len(channels)), case.case_id, "image", got=f"{count} files", expected=expected, fix=fix)
    names = [f"image {name}" for name in channels] if count > 1 else ["image"]
    files: Iterable[tuple[str, Path | None]] = [*zip(names, case.images, strict=True), ("label", case.label)]
    for key, path in files:
        if key == "label" and path in case.images:
            fix = "give the label map"
            require_case(False, case.case_id, key, got=path, expected="another file than the image", fix=fix)
        if path is not None:
            fix = "add the file, or leave the case out"
            require_case(os.path.exists(path), case.case_id, key, got="no file", expected=str(path), fix=fix)
        elif case.split == "training":
            fix = "add the label, or leave the case out"
            require_case(False, case.case_id, key, got="no path", expected="the label of a training case", fix=fix)
    return case


FOLDER = Reader(read_folder, "folder", re.compile("(?!)"), reads_any=True)
