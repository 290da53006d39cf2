"""Cases of public data sets, manifests and folders, and failed cases."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from data_prep.folder.folder_reader import has_layout
from data_prep.folder.label_names import read_channels
from data_prep.folder.listing import read_object
from data_prep.raw_folder import check_output_folder, collect
from data_prep.reader import Read, Reader
from data_prep.scan_files import read_grid
from uumamba.config.bind import check_name, load_constructor
from uumamba.config.registry import KINDS
from uumamba.data.case import MANIFEST_NAME, Case, Manifest, Split
from uumamba.data.case_files import check_file_name, find_cases, is_manifest
from uumamba.data.geometry import Geometry, find_geometry
from uumamba.runtime.case_boundary import attempt, fail_case_on_error
from uumamba.runtime.errors import CaseError, UsageError, quote, require
from uumamba.runtime.files import describe_path, remove_file, write_json
from uumamba.runtime.observer import to_stderr
from uumamba.runtime.stop import StopRequest

FAILURES_NAME = "failures.json"
FAILURE_KEYS = ("case_id", "key", "got", "expected", "fix")
FRAMES_NAME = "frames"
"""Subfolder of an output for the labelled frames that are cut out of cines."""

_PATIENTS_PER_LINE = 50


class RawFolder:
    """Raw folder of a data set, known from headers.

    Args:
        name: the data set's name in a configuration.
        raw: its folder, only read.
        out: output folder, outside of ``raw``; :meth:`read` cuts the frames of cines into ``out/frames``.
        options: options of the reader of any folder, of :meth:`uumamba.config.data.DatasetConfig.reader_options`.

    Raises:
        UsageError: ``out`` is inside ``raw``.
    """

    def __init__(self, name: str, raw: Path | str, *, out: Path, options: Mapping[str, Any] | None = None) -> None:
        check_output_folder(out, Path(raw), key="--out")
        self.name, self.raw, self.frames = name, Path(raw), out / FRAMES_NAME
        self.options = options

    @cached_property
    def listed(self) -> Read:
        """Cases and failures of the reader; nothing is written."""
        return read_dataset(self.name, self.raw, frames=self.frames, cut=False, options=self.options)

    @property
    def manifest(self) -> Manifest:
        """Listed cases; frames of cines may not exist yet."""
        return self.listed[0]

    def read(self) -> Read:
        """Read cases and failures; the frames of cines are cut first."""
        if load_reader(self.name).cuts_frames:
            return read_dataset(self.name, self.raw, frames=self.frames)
        return self.listed

    def geometries(self, case_ids: Iterable[str]) -> Iterator[Geometry]:
        """Read the geometry of each case with a readable header.

        Other cases are left to preparing, which reports them.
        """
        for case_id in case_ids:
            geometry = attempt(self.read_geometry, case_id, case_id=case_id)
            if not isinstance(geometry, CaseError):
                yield geometry

    def read_geometry(self, case_id: str) -> Geometry:
        """Read a case's geometry from its header.

        Raises:
            CaseError: the header cannot be read, or its grid is invalid.
        """
        with fail_case_on_error(case_id):
            images = self.manifest.by_id(case_id).images
            in_one_file = len(self.manifest.channels) if len(images) == 1 else 1
            grid = read_grid(images[0], case_id=case_id, channels=in_one_file)
            return find_geometry(grid.shape, spacing_mm=grid.spacing_mm, affine=grid.affine)


def load_reader(name: str) -> Reader:
    """Import the reader of a data set.

    Raises:
        UsageError: no data set has this name.
    """
    return cast(Reader, load_constructor("dataset", check_name("dataset", name, "dataset.name")))


def load_readers() -> dict[str, Reader]:
    """Import the readers of all data sets, by name in a configuration."""
    return {name: load_reader(name) for name in KINDS["dataset"].parts}


def read_dataset(
    name: str,
    raw: Path | str,
    *,
    frames: Path | str | None = None,
    cut: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Read:
    """Read a raw folder in a known or any common layout.

    M&Ms consists of cines with two labelled frames each. These frames are cut out once, into ``frames``, as copies with
    the label values of ACDC; a file is complete or absent. A second call keeps frames whose cine is unchanged.
    They take about 1.2 MB per patient where scans are like ACDC's, some 0.4 GB for the 320 labelled patients of M&Ms.
    The folder must not be moved: a manifest lists the frames as its images and labels. No other data set needs them.

    Args:
        name: the data set's name in a configuration.
        raw: the folder as its owner ships it, only read; of M&Ms also a folder of frames.
        frames: a folder outside of ``raw``; with None, cines raise.
        cut: cut the frames; otherwise cases are listed with the paths that their frames will have.
        options: options of ``folder``, the reader of any folder.

    Returns:
        The manifest of the complete cases, and an error for each other case.

    Raises:
        UsageError: the folder is missing or has no case of that layout; ``frames`` is inside it, cannot be written, or
            is needed and not given.
        StoppedOnRequest: a stop was requested while frames were cut; the next call continues.
    """
    reader, raw = load_reader(name), Path(raw)
    require(raw.is_dir(), "--raw", got=describe_path(raw), expected=f"the folder of the {name} data set")
    if not reader.cuts_frames:
        return reader(raw, **(options or {}))
    with StopRequest() as stop:

        def advance(done: int, total: int) -> None:
            if done % _PATIENTS_PER_LINE == 0 or done == total:
                to_stderr(f"frames: {done} of {total} patients")
            stop.raise_if_requested(
                f"after cutting the frames of {done} of {total} patients; run the same command to continue"
            )

        found = reader(raw, frames=frames, cut=cut, advance=advance)
        stop.raise_if_requested(f"after reading the cases in {raw}; run the same command to continue")
        return found


def is_dataset(manifest: Manifest, name: str) -> bool:
    """Return whether a manifest's name and official split are a data set's.

    Every manifest is of ``folder``.

    Example:
        >>> is_dataset(Manifest("ImageCAS", "CT", {}, (), extra={"official_split": "Split-2"}), "imagecas")
        False
    """
    reader = load_reader(name)
    if reader.reads_any:
        return True
    same_split = manifest.extra.get("official_split") == reader.official_split
    return manifest.name.lower() == reader.manifest_name.lower() and same_split


def read_labelled_cases(
    labels: Path,
    *,
    fold: int | None = None,
    split: Split | None = None,
    domains: Collection[str] | None = None,
    case_ids: Collection[str] | None = None,
    frames: Path | None = None,
) -> Read:
    """Read the cases to score, each with a label.

    A folder of label maps has neither patients nor phases: each file is one case of one patient, and the manifest's
    ``structures`` are empty.

    Args:
        labels: a manifest or its folder, a folder of ``<case_id>.nii.gz``, the raw folder of ACDC, ImageCAS (with
            its Split-1), AortaSeg24 or M&Ms, or a folder whose layout a file of it gives, such as nnU-Net's.
        fold: only this fold's cases.
        split: only this split's cases.
        domains: only the cases of these domains.
        case_ids: only these cases.
        frames: output folder for the labelled frames of M&Ms; with None, its cines raise.

    Returns:
        The cases, and an error for each incomplete case of a raw folder, unless its patient is in another fold or
        split.

    Raises:
        UsageError: no case has a label, or a fold, split or domain is given for a folder of label maps.
    """
    require(
        labels.exists(),
        "--labels",
        got=describe_path(labels),
        expected="a folder of label maps, a manifest or a data set",
    )
    given = {"fold": fold, "split": split, "domains": domains and " and ".join(sorted(domains))}
    filters = {name: value for name, value in given.items() if value is not None}
    errors: list[CaseError] = []
    if is_manifest(labels):
        manifest = Manifest.read(labels)
    elif (files := _find_label_maps(labels, "--labels")) and not _has_scans_and_labels(labels, files.values()):
        fix = "give a manifest, or remove these options"
        require(not filters, "--labels", got=labels, expected=f"a manifest with {', '.join(filters)}", fix=fix)
        cases, errors = collect(_make_case, files.items())
        manifest = Manifest(labels.name, "", {}, tuple(cases))
    else:
        manifest, errors = _read_raw(labels, frames)
    selected = manifest.select(split=split, fold=fold, domains=domains, case_ids=case_ids)
    labelled = tuple(case for case in selected if case.label is not None)
    selection = ", ".join(f"{name} {value}" for name, value in filters.items())
    expected = f"at least one labelled case{selection and ' with '}{selection}"
    fix = "choose another fold, split or domain" if filters else "give cases with labels"
    require(labelled, "--labels", got=labels, expected=expected, fix=fix)
    return replace(manifest, cases=labelled), select_failures(selected, errors, manifest=manifest)


def read_channel_names(folder: Path) -> tuple[str, ...]:
    """Read the channels' names in a folder's ``dataset.json``, or its parent's.

    Nothing if there is no such file of nnU-Net or the Decathlon, or it has no names.
    """
    for file in (folder / MANIFEST_NAME, folder.absolute().parent / MANIFEST_NAME):
        with suppress(UsageError):
            if names := read_channels(read_object(file), file=str(file)):
                return names
    return ()


def find_predictions(predictions: Path) -> dict[str, Path]:
    """Find each case's label map in a folder or manifest.

    Raises:
        UsageError: the path does not exist.
    """
    require(
        predictions.exists(),
        "--predictions",
        got=describe_path(predictions),
        expected="a folder of label maps or a manifest",
    )
    if is_manifest(predictions):
        return {case.case_id: case.label for case in Manifest.read(predictions).cases if case.label is not None}
    return _find_label_maps(predictions, "--predictions")


def record_failures(out: Path, failures: Sequence[CaseError]) -> None:
    """Write ``failures.json``: the fields of each error, by case.

    Without failures an old file is removed.
    """
    if not failures:
        remove_file(out / FAILURES_NAME)
        return
    write_json(out / FAILURES_NAME, list_failures(failures))


def list_failures(failures: Iterable[CaseError]) -> list[dict[str, str]]:
    """List the fields of each error, as in ``failures.json``."""
    return [{key: getattr(failure, key) for key in FAILURE_KEYS} | {"got": quote(failure.got)} for failure in failures]


def select_failures(selected: Iterable[Case], failures: Iterable[CaseError], *, manifest: Manifest) -> list[CaseError]:
    """Select the failures of some cases' patients and of unknown patients.

    A patient is in one fold only, so the fold of a failed frame is the fold of the patient's other frames. A patient
    without any readable case is in no known fold or split.

    Args:
        selected: cases of the manifest.
        failures: their ids are those of a case, or of a patient without any readable case.
        manifest: every readable case.
    """
    patients = {case.case_id: case.patient_id for case in manifest.cases}
    others = {*patients.values()} - {case.patient_id for case in selected}
    return [
        failure
        for failure in failures
        if patients.get(failure.case_id) not in others
        and not any(f"{failure.case_id}_".startswith(f"{name}_") for name in others)
    ]


def _has_scans_and_labels(folder: Path, files: Collection[Path]) -> bool:
    """Return whether files are a data set's.

    Predictions may have the names of scans, and nnU-Net writes its ``dataset.json`` next to them. A patient's folder of
    ACDC has each frame with and without ``_gt``.
    """
    if not (folder / MANIFEST_NAME).exists() and has_layout(folder):
        return True
    names = {path.name for path in files}
    if any(name.replace("_gt.", ".") in names for name in names if "_gt." in name):
        return True
    return any(len(reader.find_kinds(path.name for path in files) - {""}) > 1 for reader in load_readers().values())


def _make_case(file: tuple[str, Path]) -> Case:
    case_id, path = file
    check_file_name(case_id)
    return Case(case_id, case_id, "", path, label=path)


def _find_label_maps(folder: Path, option: str) -> dict[str, Path]:
    require(folder.is_dir(), option, got=describe_path(folder), expected="a folder or a manifest (.json)")
    return find_cases(folder, option=option)


def _read_raw(folder: Path, frames: Path | None) -> Read:
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    readers = load_readers()
    for name, reader in readers.items():
        if reader.find_kinds(paths):
            return read_dataset(name, folder, frames=frames)
    if has_layout(folder):
        return read_dataset("folder", folder)
    names = " or ".join(dict.fromkeys(reader.manifest_name for reader in readers.values() if not reader.reads_any))
    expected = f"a folder of <case_id>.nii.gz files, a dataset.json, or a downloaded folder of {names}"
    raise UsageError("--labels", got=folder, expected=expected)
