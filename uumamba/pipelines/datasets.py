"""Which reader of ``data_prep`` serves a data set's name."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from uumamba.data.case import Manifest
from uumamba.errors import CaseError, UsageError

Read = tuple[Manifest, list[CaseError]]


def read_dataset(name: str, raw: Path | str) -> Read:
    """Read a raw folder in a public data set's layout.

    Returns:
        The manifest of the whole cases, and an error for each case that is not.

    Raises:
        UsageError: the folder is missing or holds no case of that layout.
    """
    raw = Path(raw)
    if not raw.is_dir():
        found = "is a file" if raw.exists() else "does not exist"
        raise UsageError(f"The raw folder {raw} {found}; give the folder that holds the {name} data set.")
    if name not in READERS:
        raise UsageError(f"There is no reader for the data set {name!r}; known are {', '.join(READERS)}.")
    return READERS[name](raw)


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


def _read_mnms(raw: Path) -> Read:
    from data_prep.mnms import read_mnms

    return read_mnms(raw)


READERS: Mapping[str, Callable[[Path], Read]] = {
    "acdc": _read_acdc,
    "phantom": _read_phantom,
    "imagecas": _read_imagecas,
    "imagecas_split2": partial(_read_imagecas, split="Split-2"),
    "imagecas_split3": partial(_read_imagecas, split="Split-3"),
    "imagecas_split4": partial(_read_imagecas, split="Split-4"),
    "aorta": _read_aorta,
    "mnms": _read_mnms,
}

MANIFESTS: Mapping[str, tuple[str, str | None]] = {
    "imagecas": ("ImageCAS", "Split-1"),
    "imagecas_split2": ("ImageCAS", "Split-2"),
    "imagecas_split3": ("ImageCAS", "Split-3"),
    "imagecas_split4": ("ImageCAS", "Split-4"),
    "aorta": ("AortaSeg24", None),
    "mnms": ("M&Ms", None),
}
"""Name and official split in the manifest, where its name is not the data set's."""
