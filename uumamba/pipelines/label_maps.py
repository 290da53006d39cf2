"""Where label maps come from: a folder of files, a manifest, or a public data set's own folder."""

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

from uumamba.data.case import MANIFEST_NAME, Case, Manifest, Split
from uumamba.data.itk import ITK_SUFFIXES
from uumamba.pipelines.datasets import read_dataset
from uumamba.pipelines.failures import failures_among
from uumamba.runtime.errors import CaseError, UsageError

SUFFIXES = (".nii.gz", ".nii", *ITK_SUFFIXES)
LAYOUTS = ("acdc", "imagecas", "aorta", "mnms")
"""Data sets whose own folder stands for labels; the phantoms lie in these layouts, too."""

# An unpacked shard, or AortaSeg24 in one folder, holds scans beside labels and is no folder of label maps. Label maps
# that bear the names of their scans, as predictions do, have no such labels beside them.
_SCAN = re.compile(r"\d+\.img\.nii(\.gz)?|subject\d+_CTA\.(mha|nii|nii\.gz)", re.IGNORECASE)
_LABEL_BESIDE = re.compile(r"\d+\.label\.nii(\.gz)?|subject\d+_label\.(mha|nii|nii\.gz)", re.IGNORECASE)


def read_labelled_cases(
    labels: Path,
    *,
    fold: int | None = None,
    split: Split | None = None,
    domains: Collection[str] | None = None,
    case_ids: Collection[str] | None = None,
    frames: Path | None = None,
) -> tuple[Manifest, list[CaseError]]:
    """The cases to score, each with a label.

    A folder of label maps knows neither patients nor phases: each file is a case and its own patient, and the
    manifest's ``structures`` are empty.

    Args:
        labels: a manifest or its folder, a folder of ``<case_id>.nii.gz``, or ACDC's, ImageCAS's (with its Split-1),
            AortaSeg24's or M&Ms's own folder.
        fold: only this fold's cases.
        split: only this split's cases.
        domains: only the cases of these.
        case_ids: only these cases.
        frames: where M&Ms's labelled frames are cut to; None refuses its whole cines.

    Returns:
        The cases, and an error for each one of a raw folder that is not whole, unless its patient lies in another fold
        or split.

    Raises:
        UsageError: nothing to score is found there, or a fold, split or domain is asked of a folder that knows none.
    """
    if not labels.exists():
        raise UsageError(f"The labels {labels} do not exist; give a folder of label maps, a manifest or a data set.")
    errors: list[CaseError] = []
    if is_manifest(labels):
        manifest = Manifest.read(labels)
    elif (files := _label_files(labels)) and not _holds_scans_too(files.values()):
        if not (fold is None and split is None and domains is None):
            raise UsageError(
                f"{labels} is a folder of label maps, which has no folds, splits or domains; give a manifest."
            )
        cases = tuple(Case(case_id, case_id, "", path, label=path) for case_id, path in files.items())
        manifest = Manifest(labels.name, "", {}, cases)
        return replace(manifest, cases=manifest.select(case_ids=case_ids)), errors
    else:
        manifest, errors = _read_raw(labels, frames)
    asked_for = manifest.select(split=split, fold=fold, domains=domains, case_ids=case_ids)
    chosen = tuple(case for case in asked_for if case.label is not None)
    if not chosen:
        raise UsageError(f"{labels} lists no case with a label{_asked_for(fold, split, domains)}; score others.")
    errors = failures_among(asked_for, errors, manifest=manifest)
    return replace(manifest, cases=chosen), errors


def find_predictions(predictions: Path) -> dict[str, Path]:
    """The label map of each case: the files of a folder, or the labels that a manifest lists.

    Raises:
        UsageError: the path does not exist.
    """
    if not predictions.exists():
        raise UsageError(f"The predictions {predictions} do not exist; give a folder of label maps or a manifest.")
    if is_manifest(predictions):
        return {case.case_id: case.label for case in Manifest.read(predictions).cases if case.label is not None}
    return _label_files(predictions)


def is_manifest(path: Path) -> bool:
    """Whether a path stands for a manifest: any ``.json``, or a folder with a ``dataset.json``."""
    return path.suffix == ".json" or (path / MANIFEST_NAME).is_file()


def suffix_of(path: Path) -> str:
    """The suffix of a scan's or label map's name, ``.nii.gz`` as a whole; empty where it is neither."""
    return next((path.name[-len(suffix) :] for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def volumes_in(folder: Path) -> list[Path]:
    """Scans and label maps of a folder, by name; hidden files are left out."""
    return sorted(path for path in folder.iterdir() if suffix_of(path) and not path.name.startswith("."))


def _holds_scans_too(files: Iterable[Path]) -> bool:
    names = [path.name for path in files]
    return any(map(_SCAN.fullmatch, names)) and any(map(_LABEL_BESIDE.fullmatch, names))


def _label_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder} is neither a folder nor a manifest (.json); give one of them.")
    found: dict[str, Path] = {}
    for path in volumes_in(folder):
        case_id = path.name.removesuffix(suffix_of(path))
        if found.setdefault(case_id, path) != path:
            raise UsageError(f"{path} and {found[case_id]} are both the case {case_id}; rename one of them.")
    return found


def _read_raw(folder: Path, frames: Path | None) -> tuple[Manifest, list[CaseError]]:
    """Read a data set's own folder, whichever of the known ones it is.

    Raises:
        UsageError: it is none; or it is one that is not whole, and that reader's sentence says what it lacks.
    """
    reasons = []
    for name in LAYOUTS:
        try:
            return read_dataset(name, folder, frames=frames)
        except UsageError as error:
            reasons.append(error)
    for reason in reasons:
        if reason.key != "raw":  # some of its layout was found
            raise reason
    raise UsageError(
        f"No label map was found in {folder}; give a folder of <case_id>.nii.gz, a manifest (dataset.json), or the "
        "folder of ACDC, ImageCAS, AortaSeg24 or M&Ms as it was downloaded."
    )


def _asked_for(fold: int | None, split: Split | None, domains: Collection[str] | None) -> str:
    parts = [f"fold {fold}" if fold is not None else "", f"split {split}" if split is not None else ""]
    parts.append(f"domain {', '.join(domains)}" if domains is not None else "")
    return " in " + " and ".join(part for part in parts if part) if any(parts) else ""
