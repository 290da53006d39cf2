"""Layout of a manifest, as ``Manifest.write`` stores it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.folder.folder_options import FolderOptions
from data_prep.folder.listing import Listing
from uumamba.data.case import Manifest

_FIELDS = (
    "name", "reference", "licence", "structures", "extra", "ignore_value", "regions", "regions_class_order", "colours",
)  # fmt: skip


def list_manifest(raw: Path, options: FolderOptions) -> Listing:
    """List the cases of a manifest.

    Raises:
        UsageError: as of :meth:`Manifest.read`.
    """
    return list_file(raw)


def list_file(path: Path) -> Listing:
    """List the cases of a manifest's file or folder."""
    manifest = Manifest.read(path)
    about = {key: getattr(manifest, key) for key in _FIELDS}
    return Listing(manifest.cases, (), manifest.channels, about)


def is_own(stored: Mapping[str, Any]) -> bool:
    """Return whether a JSON object is a manifest with case ids."""
    lists = [stored[key] for key in ("training", "test") if isinstance(stored.get(key), list)]
    entries = [entry for each in lists for entry in each]
    has_ids = bool(lists) and all(isinstance(entry, Mapping) and "case_id" in entry for entry in entries)
    return has_ids and {"name", "modality", "labels"} <= stored.keys()
