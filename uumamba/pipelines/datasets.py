"""Which reader of ``data_prep`` serves a data set's name."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from uumamba.data.case import Manifest
from uumamba.runtime.errors import CaseError, UsageError
from uumamba.runtime.stop import StopRequest

Read = tuple[Manifest, list[CaseError]]

FRAMES_NAME = "frames"
"""The folder, inside of what a command makes, for the frames that it cuts out of whole cines."""

_PATIENTS_A_LINE = 50


def read_dataset(name: str, raw: Path | str, *, frames: Path | str | None = None) -> Read:
    """Read a raw folder in a public data set's layout.

    M&Ms ships whole cines, of which two frames are labelled. Those are cut out once, into ``frames``: copies with the
    label values of ACDC, each file whole or absent. A second call leaves those alone that are newer than their cine.
    They take about 1.2 MB a patient where scans are like ACDC's, so some 0.4 GB for M&Ms's 320 labelled patients, and
    must stay where they are: a manifest lists them as its images and labels. No other data set needs the folder.

    Args:
        name: as a configuration names it.
        raw: the folder as its owner ships it, only read; of M&Ms also a folder of frames.
        frames: outside of ``raw``; None refuses whole cines.

    Returns:
        The manifest of the whole cases, and an error for each case that is not.

    Raises:
        UsageError: the folder is missing or holds no case of that layout; ``frames`` lies in it, cannot be written, or
            is needed and not given.
        StoppedOnRequest: a signal asked for it while frames were cut; the next call goes on from there.
    """
    raw = Path(raw)
    if not raw.is_dir():
        found = "is a file" if raw.exists() else "does not exist"
        raise UsageError(f"The raw folder {raw} {found}; give the folder that holds the {name} data set.")
    if name not in READERS:
        raise UsageError(f"There is no reader for the data set {name!r}; known are {', '.join(READERS)}.")
    return READERS[name](raw, frames=frames) if name in OF_CINES else READERS[name](raw)


def is_dataset(manifest: Manifest, name: str) -> bool:
    """Whether a manifest was read as the data set of that name, by the same official split where there are several.

    Example:
        >>> is_dataset(Manifest("ImageCAS", "CT", {}, (), extra={"official_split": "Split-2"}), "imagecas")
        False
    """
    listed, split = MANIFESTS.get(name, (name, None))
    return manifest.name.lower() == listed.lower() and manifest.extra.get("official_split") == split


def refuse_inside_raw(out: Path, raw: Path | str) -> None:
    """Keep what is made out of the raw folder, which is never written to.

    Raises:
        UsageError: ``out`` is that folder or lies in it.
    """
    if out.resolve().is_relative_to(Path(raw).resolve()):
        raise UsageError(f"{out} lies in the raw folder {raw}, which is never written to; choose another --out.")


def _read_acdc(raw: Path) -> Read:
    from data_prep.acdc import read_acdc

    return read_acdc(raw)


def _read_phantom(raw: Path) -> Read:
    """The phantom lies in ACDC's layout but is nobody's patients: ACDC's citation and licence do not apply."""
    manifest, errors = _read_acdc(raw)
    return replace(manifest, name="phantom", reference="", licence=""), errors


def _read_imagecas(raw: Path, split: Literal["Split-1", "Split-2", "Split-3", "Split-4"] = "Split-1") -> Read:
    from data_prep.imagecas import read_imagecas

    return read_imagecas(raw, split=split)


def _read_aorta(raw: Path) -> Read:
    from data_prep.aorta import read_aorta

    return read_aorta(raw)


def _read_mnms(raw: Path, frames: Path | str | None = None) -> Read:
    from data_prep.mnms import read_mnms
    from data_prep.mnms_layout import find_folder, holds_cines

    if frames is None or not holds_cines(find_folder(raw)):
        return read_mnms(raw)
    with StopRequest() as stop:

        def advance(done: int, total: int) -> None:
            if done % _PATIENTS_A_LINE == 0 or done == total:
                print(f"frames: {done} of {total} patients", file=sys.stderr)
            stop.raise_if_requested(
                f"after cutting the frames of {done} of {total} patients; the same command goes on from there"
            )

        return read_mnms(raw, frames=frames, advance=advance)


READERS: Mapping[str, Callable[..., Read]] = {
    "acdc": _read_acdc,
    "phantom": _read_phantom,
    "imagecas": _read_imagecas,
    "imagecas_split2": partial(_read_imagecas, split="Split-2"),
    "imagecas_split3": partial(_read_imagecas, split="Split-3"),
    "imagecas_split4": partial(_read_imagecas, split="Split-4"),
    "aorta": _read_aorta,
    "mnms": _read_mnms,
}

OF_CINES = ("mnms",)
"""Readers that take ``frames``."""

MANIFESTS: Mapping[str, tuple[str, str | None]] = {
    "imagecas": ("ImageCAS", "Split-1"),
    "imagecas_split2": ("ImageCAS", "Split-2"),
    "imagecas_split3": ("ImageCAS", "Split-3"),
    "imagecas_split4": ("ImageCAS", "Split-4"),
    "aorta": ("AortaSeg24", None),
    "mnms": ("M&Ms", None),
}
"""Name and official split in the manifest, where its name is not the data set's."""
