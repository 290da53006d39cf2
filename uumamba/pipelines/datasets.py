"""Cases of a public data set's own folder, of a manifest, or of a folder of label maps, and those that failed."""

import re
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import data_prep
from uumamba.data.case import MANIFEST_NAME, Case, Manifest, Split
from uumamba.data.itk import ITK_SUFFIXES
from uumamba.runtime.errors import CaseError, UsageError, require
from uumamba.runtime.files import write_json
from uumamba.runtime.stop import StopRequest

Read = tuple[Manifest, list[CaseError]]
DATASETS = ("acdc", "phantom", "imagecas", "imagecas_split2", "imagecas_split3", "imagecas_split4", "aorta", "mnms")

FAILURES_NAME = "failures.json"
FRAMES_NAME = "frames"
"""Subfolder of an output for the labelled frames that are cut out of whole cines."""
SUFFIXES = (".nii.gz", ".nii", *ITK_SUFFIXES)
LAYOUTS = {
    "acdc": r"(.*/)?patient\d+(/.*)?",
    "imagecas": r"(?i)(.*/)?(\d+\.(img|label)\.nii(\.gz)?|imagecas_data_split\.\w+|\d+-\d+\.(change2)?zip)",
    "aorta": r"(?i)(.*/)?subject\d+_(CTA|label)\.(mha|nii|nii\.gz)",
    "mnms": r"(.*/)?(Training/(Labeled|Unlabeled)|Validation|Testing)/.*",
}
"""Paths that identify the layout of a data set's own folder; the phantoms have these layouts too."""

_PATIENTS_A_LINE = 50
_NAMES = {"imagecas": "ImageCAS", "aorta": "AortaSeg24", "mnms": "M&Ms"}
"""Name in the manifest, where the configuration's differs by more than case."""
# Predictions may have the names of scans, but no labels beside them.
_SCAN = re.compile(r"\d+\.img\.nii(\.gz)?|subject\d+_CTA\.(mha|nii|nii\.gz)", re.IGNORECASE)
_LABEL = re.compile(r"\d+\.label\.nii(\.gz)?|subject\d+_label\.(mha|nii|nii\.gz)", re.IGNORECASE)


def read_dataset(name: str, raw: Path | str, *, frames: Path | str | None = None) -> Read:
    """Read a raw folder in a public data set's layout.

    M&Ms consists of whole cines, of which two frames are labelled. These frames are cut out once, into ``frames``:
    copies with the label values of ACDC, each file whole or absent. A second call skips frames that are newer than
    their cine. They take about 1.2 MB a patient where scans are like ACDC's, some 0.4 GB for the 320 labelled patients
    of M&Ms, and must stay in place: a manifest lists them as its images and labels. No other data set needs the folder.

    Args:
        name: as a configuration names it.
        raw: the folder as its owner ships it, only read; of M&Ms also a folder of frames.
        frames: outside of ``raw``; None refuses whole cines.

    Returns:
        The manifest of the complete cases, and an error for each other case.

    Raises:
        UsageError: the folder is missing or holds no case of that layout; ``frames`` is inside it, cannot be written,
            or is needed and not given.
        StoppedOnRequest: a signal requested it while frames were cut; the next call continues there.
    """
    require(name in DATASETS, "dataset.name", got=name, expected=", ".join(DATASETS))
    raw, split = Path(raw), _official_split(name)
    require(raw.is_dir(), "--raw", got=raw, expected=f"the folder of the {name} data set")
    if split is not None:
        return data_prep.read_imagecas(raw, split=split)
    if name == "mnms":
        return _read_mnms(raw, frames)
    return {"acdc": data_prep.read_acdc, "phantom": _read_phantom, "aorta": data_prep.read_aorta}[name](raw)


def is_dataset(manifest: Manifest, name: str) -> bool:
    """Return whether a manifest belongs to a data set, including its official split.

    Example:
        >>> is_dataset(Manifest("ImageCAS", "CT", {}, (), extra={"official_split": "Split-2"}), "imagecas")
        False
    """
    listed = _NAMES.get(name.partition("_")[0], name)
    same_split = manifest.extra.get("official_split") == _official_split(name)
    return manifest.name.lower() == listed.lower() and same_split


def check_outside_raw(out: Path, raw: Path | str) -> None:
    """Raise if an output is inside the raw folder, which is never written to.

    Raises:
        UsageError: ``out`` is the raw folder or inside it.
    """
    inside = out.resolve().is_relative_to(Path(raw).resolve())
    require(not inside, "--out", got=out, expected=f"a folder outside of the raw folder {raw}")


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

    A folder of label maps has neither patients nor phases: each file is a case and its own patient, and the manifest's
    ``structures`` are empty.

    Args:
        labels: a manifest or its folder, a folder of ``<case_id>.nii.gz``, or ACDC's, ImageCAS's (with its Split-1),
            AortaSeg24's or M&Ms's own folder.
        fold: only this fold's cases.
        split: only this split's cases.
        domains: only the cases of these domains.
        case_ids: only these cases.
        frames: output folder for M&Ms's labelled frames; None refuses its whole cines.

    Returns:
        The cases, and an error for each incomplete case of a raw folder, unless its patient is in another fold or
        split.

    Raises:
        UsageError: there is nothing to score, or a fold, split or domain is given for a folder without these.
    """
    require(labels.exists(), "--labels", got=labels, expected="a folder of label maps, a manifest or a data set")
    given = {"fold": fold, "split": split, "domains": domains}
    filters = {name: value for name, value in given.items() if value is not None}
    errors: list[CaseError] = []
    if is_manifest(labels):
        manifest = Manifest.read(labels)
    elif (files := _label_files(labels)) and not _holds_scans_too(files.values()):
        fix = "give a manifest, which has folds, splits and domains"
        require(not filters, "--labels", got=labels, expected=f"a manifest, as {', '.join(filters)} is set", fix=fix)
        cases = tuple(Case(case_id, case_id, "", path, label=path) for case_id, path in files.items())
        manifest = Manifest(labels.name, "", {}, cases)
    else:
        manifest, errors = _read_raw(labels, frames)
    selected = manifest.select(split=split, fold=fold, domains=domains, case_ids=case_ids)
    labelled = tuple(case for case in selected if case.label is not None)
    of = ", ".join(f"{name} {value}" for name, value in filters.items())
    require(labelled, "--labels", got=labels, expected=f"a case with a label{of and ' of '}{of}")
    return replace(manifest, cases=labelled), failures_among(selected, errors, manifest=manifest)


def find_predictions(predictions: Path) -> dict[str, Path]:
    """Find the label map of each case: the files of a folder, or the labels of a manifest.

    Raises:
        UsageError: the path does not exist.
    """
    require(predictions.exists(), "--predictions", got=predictions, expected="a folder of label maps or a manifest")
    if is_manifest(predictions):
        return {case.case_id: case.label for case in Manifest.read(predictions).cases if case.label is not None}
    return _label_files(predictions)


def is_manifest(path: Path) -> bool:
    """Return whether a path is a manifest: any ``.json``, or a folder with a ``dataset.json``."""
    return path.suffix == ".json" or (path / MANIFEST_NAME).is_file()


def suffix_of(path: Path) -> str:
    """Suffix of a scan's or label map's name, ``.nii.gz`` in one piece; empty for other files."""
    return next((path.name[-len(suffix) :] for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def volumes_in(folder: Path) -> list[Path]:
    """List scans and label maps of a folder by name, without hidden files."""
    return sorted(path for path in folder.iterdir() if suffix_of(path) and not path.name.startswith("."))


def add_case(found: dict[str, Path], case_id: str, path: Path) -> None:
    """Add a case's file, or raise if the case has another one already.

    Raises:
        UsageError: two files have one case id.
    """
    known = found.setdefault(case_id, path)
    require(known == path, case_id, got=f"{known} and {path}", expected="one file", fix="rename one of them")


def record_failures(out: Path, failures: Sequence[CaseError]) -> None:
    """Write ``failures.json``: case, key, value found, valid values, fix; without failures remove an old one."""
    if failures:
        rows = [
            {"case_id": e.case_id, "key": e.key, "got": str(e.got), "expected": e.expected, "fix": e.fix}
            for e in failures
        ]
        write_json(out / FAILURES_NAME, rows)
    else:
        (out / FAILURES_NAME).unlink(missing_ok=True)


def failures_among(selected: Iterable[Case], failures: Iterable[CaseError], *, manifest: Manifest) -> list[CaseError]:
    """Select the failures of some cases' patients, and of patients with unknown fold and split.

    A patient is in one fold only, so the fold of a failed frame is that of the patient's other frames.

    Args:
        selected: cases of the manifest.
        failures: with the id of a case, or of a patient without any readable case.
        manifest: every known case.
    """
    wanted = {case.patient_id for case in selected}
    others = {case.patient_id for case in manifest.cases} - wanted
    patients = {case.case_id: case.patient_id for case in manifest.cases}
    return [
        failure
        for failure in failures
        if patients.get(failure.case_id) not in others
        and not any(f"{failure.case_id}_".startswith(f"{name}_") for name in others)
    ]


def _official_split(name: str) -> Any:
    """Split of ImageCAS by a data set's name, None for other data sets."""
    base, _, number = name.partition("_split")
    return f"Split-{number or 1}" if base == "imagecas" else None


def _holds_scans_too(files: Iterable[Path]) -> bool:
    names = [path.name for path in files]
    return any(map(_SCAN.fullmatch, names)) and any(map(_LABEL.fullmatch, names))


def _label_files(folder: Path) -> dict[str, Path]:
    require(folder.is_dir(), "label maps", got=folder, expected="a folder or a manifest (.json)")
    found: dict[str, Path] = {}
    for path in volumes_in(folder):
        add_case(found, path.name.removesuffix(suffix_of(path)), path)
    return found


def _read_raw(folder: Path, frames: Path | None) -> Read:
    paths = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    for name, pattern in LAYOUTS.items():
        if any(map(re.compile(pattern).fullmatch, paths)):
            return read_dataset(name, folder, frames=frames)
    expected = (
        "<case_id>.nii.gz, dataset.json, or the folder of ACDC, ImageCAS, AortaSeg24 or M&Ms as it was downloaded"
    )
    raise UsageError("--labels", got=folder, expected=expected)


def _read_phantom(raw: Path) -> Read:
    """Read the phantom, which has ACDC's layout but no real patients: ACDC's citation and licence do not apply."""
    manifest, errors = data_prep.read_acdc(raw)
    return replace(manifest, name="phantom", reference="", licence=""), errors


def _read_mnms(raw: Path, frames: Path | str | None) -> Read:
    from data_prep.mnms_layout import find_folder, holds_cines

    if frames is None or not holds_cines(find_folder(raw)):
        return data_prep.read_mnms(raw)
    with StopRequest() as stop:

        def advance(done: int, total: int) -> None:
            if done % _PATIENTS_A_LINE == 0 or done == total:
                print(f"frames: {done} of {total} patients", file=sys.stderr)
            stop.raise_if_requested(
                f"after cutting the frames of {done} of {total} patients; run the same command to continue"
            )

        return data_prep.read_mnms(raw, frames=frames, advance=advance)
