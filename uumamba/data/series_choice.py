"""Choice of one series in each DICOM study."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from uumamba.data.formats.dicom_headers import DicomHeader, read_header
from uumamba.data.formats.dicom_studies import (
    DicomSeries,
    SeriesSummary,
    group_by_series,
    join_slices,
    list_dicom_files,
    list_series,
    summarize_series,
)
from uumamba.data.warn import warn_repaired
from uumamba.runtime.errors import CaseError, require

_SHORTEST_UID_PART = 4
_MOST_NAMED = 5


@dataclass(frozen=True)
class SeriesWish:
    """Series that a user or a model wants.

    Attributes:
        names: UIDs, unique beginnings or ends of UIDs, numbers, or parts of descriptions; empty for any series.
        modality: the model's, such as MR; empty if unknown.
    """

    names: Sequence[str] = ()
    modality: str = ""


@dataclass(frozen=True)
class _Folder:
    """Headers of a folder's DICOM images, and its damaged files."""

    path: Path
    headers: tuple[DicomHeader, ...]
    damaged: tuple[Path, ...]


def find_studies(folders: Iterable[Path], wish: SeriesWish) -> Iterator[tuple[str, Path | DicomSeries]]:
    """Yield case id and series of each study.

    Folders with one StudyInstanceUID are one study, named after the folder that holds all its images, unless two of
    them hold the same image: then UIDs are not unique, and each folder is a study. A folder with a
    single series stays a folder. Without a series of several slices, those of one slice each are joined, as many
    scanners store a short axis. Folders whose files cannot be read are cases of their own, which the reader refuses;
    folders without images are too, unless there are images in another one.

    Raises:
        UsageError: no series of a study is wanted by name.
    """
    read = [_read_folder(folder) for folder in folders]
    has_images = any(each.headers for each in read)
    for each in read:
        if not each.headers and (each.damaged or not has_images):
            yield each.path.resolve().name, each.path
    for study in _group_by_study(each for each in read if each.headers):
        folder = Path(os.path.commonpath([each.path for each in study]))
        case_id = folder.resolve().name
        yield case_id, _choose(study, folder, wish, case_id)


def _read_folder(folder: Path) -> _Folder:
    headers, damaged = list[DicomHeader](), list[Path]()
    try:
        files = list_dicom_files(folder)
    except OSError:
        return _Folder(folder, (), (folder,))
    for file in files:
        try:
            header = read_header(file, case_id=folder.name)
        except CaseError:
            damaged.append(file)
        else:
            headers += [header] if header else []
    return _Folder(folder, tuple(headers), tuple(damaged))


def _group_by_study(folders: Iterable[_Folder]) -> list[list[_Folder]]:
    """Group folders that share a StudyInstanceUID."""
    groups: list[tuple[set[str], list[_Folder]]] = []
    for folder in folders:
        uids = {header.texts["StudyInstanceUID"] or str(folder.path) for header in folder.headers}
        same = [group for group in groups if group[0] & uids]
        groups = [group for group in groups if not group[0] & uids]
        groups.append(
            (uids.union(*(known for known, _ in same)), [*(each for _, found in same for each in found), folder])
        )
    return [
        part for _, found in groups for part in ([found] if _has_unique_images(found) else [[one] for one in found])
    ]


def _has_unique_images(folders: Sequence[_Folder]) -> bool:
    """Return whether no image of a series is in two folders.

    Removing patient data can give the scans of all patients the same UIDs; then each folder is a case.
    """
    images = [
        {(header.texts["SeriesInstanceUID"], header.instance_number) for header in folder.headers} for folder in folders
    ]
    return sum(map(len, images)) == len(set().union(*images))


def _choose(study: Sequence[_Folder], folder: Path, wish: SeriesWish, case_id: str) -> Path | DicomSeries:
    headers = group_by_series(header for each in study for header in each.headers)
    series = [summarize_series(each) for each in headers.values()]
    if len(series) == len(study) == 1 and not wish.names:
        return folder
    kept = _prefer(_select(series, wish.names, folder), wish.modality)
    if len(kept) > 1 and not any(each.slices > 1 for each in kept):
        kept = join_slices(kept, headers) or kept
    choice = ""
    if len(kept) == 1 < len(series):
        others = [each for each in series if each.files[0] not in kept[0].files]
        named = "; ".join(each.short_name for each in others[:_MOST_NAMED])
        more = f" and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
        left_out = f"left out are {named}{more}" if others else "nothing is left out"
        choice = f"the series used is {kept[0]}; {left_out}"
        warn_repaired(case_id, choice)
    damaged = [file for each in study for file in each.damaged]  # they may belong to any series, so they are refused
    files = (*(file for each in kept for file in each.files), *damaged)
    return DicomSeries(folder, files, is_joined=len(kept) == 1 and kept[0].joined > 1, choice=choice)


def _select(series: Sequence[SeriesSummary], names: Sequence[str], folder: Path) -> Sequence[SeriesSummary]:
    """Select the series that the user names."""
    if not names:
        return series
    selected = [each for name in names for each in _match(series, name)]
    require(
        selected,
        "--series",
        got=", ".join(names),
        expected=f"UID, number or part of the description of a series of {folder.name}: {list_series(series)}",
    )
    return [each for each in series if each in selected]


def _match(series: Sequence[SeriesSummary], name: str) -> list[SeriesSummary]:
    """Return the series of a name.

    It is a UID, or else a number, or else the beginning or end of a UID, or else a part of a description.
    """
    rules: tuple[Callable[[SeriesSummary], bool], ...] = (
        lambda each: each.uid == name,
        lambda each: each.number == name,
        lambda each: len(name) >= _SHORTEST_UID_PART and (each.uid.startswith(name) or each.uid.endswith(name)),
        lambda each: bool(name) and name.casefold() in each.description.casefold(),
    )
    return next((found for rule in rules if (found := list(filter(rule, series)))), [])


def _prefer(series: Sequence[SeriesSummary], modality: str) -> Sequence[SeriesSummary]:
    """Keep the series that fit the model best.

    They are scans, if there are any; of these the ones of its modality, if any; of these the ones with several slices.
    """
    rules: tuple[Callable[[SeriesSummary], bool], ...] = (
        lambda each: each.is_scan,
        lambda each: each.modality == modality,
        lambda each: each.slices > 1,
    )
    for rule in rules:
        series = list(filter(rule, series)) or series
    return series
