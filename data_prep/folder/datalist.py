"""Layouts of the Medical Segmentation Decathlon and of MONAI's datalists."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.folder.folder_options import KEY, FolderOptions
from data_prep.folder.label_names import read_about, read_channels
from data_prep.folder.listing import ONLY_CHANNEL, Listing, make_case, read_fold, read_object
from data_prep.folder.own_manifest import is_own, list_file
from data_prep.raw_folder import collect
from uumamba.data.case import MANIFEST_NAME, Case
from uumamba.runtime.errors import CaseError, UsageError, require

LISTS = ("training", "validation", "test", "testing")


def list_datalist(raw: Path, options: FolderOptions) -> Listing:
    """List the entries of a JSON file.

    The lists are ``training``, ``validation`` and ``test``. An entry has ``image`` (a path, or one for each channel)
    and ``label``, and may have ``fold``, ``case_id``, ``patient_id``, ``domain``, ``phase`` and ``group``; a test entry
    may be the path of its image. Paths are relative to the file. Names of channels and labels are those of ``modality``
    and ``labels``, as in the Decathlon, whose images hold all channels in one file.

    Entries of ``validation`` are fold 0, and those of ``training`` without a fold are trained on in every fold.

    Raises:
        UsageError: the file is missing or damaged, or both ``validation`` and folds of training entries are given.
    """
    file = find_datalist(raw, options)
    stored = read_object(file)
    if is_own(stored):
        return list_file(file)
    entries = [(key, index, entry) for key in LISTS for index, entry in enumerate(_read_list(stored, key, file))]
    if stored.get("validation"):
        folds = [entry["fold"] for key, _, entry in entries if isinstance(entry, Mapping) and "fold" in entry]
        expected = "no fold of an entry together with the list validation"
        require(not folds, f"{file}: fold", got=folds[:1], expected=expected, fix="remove one of the two")
    cases, failures = collect(lambda entry: _make_entry(file, *entry), entries)
    named, most = read_channels(stored, file=str(file)), max((len(case.images) for case in cases), default=1)
    numbered = tuple(f"channel_{index}" for index in range(most)) if most > 1 else (ONLY_CHANNEL,)
    return Listing(cases, failures, named or numbered, read_about(stored, file=str(file)))


def find_datalist(raw: Path, options: FolderOptions) -> Path:
    """Find the JSON file of a datalist.

    Raises:
        UsageError: there is none, or there are several.
    """
    if options.case_list is not None:
        return raw / options.case_list
    named = raw / MANIFEST_NAME
    found = [named] if named.is_file() else list_datalists(raw)
    expected = "one JSON file with a list training"
    got, fix = " and ".join(path.name for path in found) or "none", f"set {KEY}.case_list to the file"
    require(len(found) == 1, str(raw), got=got, expected=expected, fix=fix)
    return found[0]


def list_datalists(folder: Path) -> list[Path]:
    """List the JSON files of a folder with training entries."""
    return sorted(path for path in folder.glob("*.json") if _is_datalist(path))


def _is_datalist(path: Path) -> bool:
    try:
        return isinstance(read_object(path).get("training"), list)
    except UsageError:
        return False


def _read_list(stored: Mapping[str, Any], key: str, file: Path) -> Iterator[Any]:
    entries = stored.get(key, [])
    require(isinstance(entries, list), f"{file}: {key}", got=entries, expected="a list of entries")
    yield from entries


def _make_entry(file: Path, key: str, index: int, entry: Any) -> Case:
    place, is_test = f"{key}_{index}", key.startswith("test")
    given = {"image": entry} if is_test and isinstance(entry, str) else entry
    if not isinstance(given, Mapping):
        expected, fix = "an entry with image and label", f"correct the entry in {file.name}"
        raise CaseError(place, "entry", got=entry, expected=expected, fix=fix)
    fold = 0 if key == "validation" else read_fold(given.get("fold"), key=f"{file}: {key}.{index}.fold")
    return make_case(
        file.parent, given, place=place, split="test" if is_test else "training", fold=None if is_test else fold
    )
