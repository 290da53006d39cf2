"""Prepared cases on disk: arrays that are mapped, not loaded, and a JSON that says they are complete.

``PREPARED/dataset.json`` (manifest with raw paths), ``PREPARED/recipe.json``, where statistics of CT were found the
samples ``PREPARED/foreground/<case_id>.npz``, and for each case
``PREPARED/cases/<case_id>/`` with ``image.npy`` (float16 ``(C, Z, Y, X)``), ``label.npy`` (uint8 ``(Z, Y, X)``),
``locations.npy`` (int32 ``(n, 4)``) and ``case.json``. That last file is written last: a case without it is not there.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from uumamba.data.case import MANIFEST_NAME, Case, Manifest
from uumamba.data.geometry import Geometry
from uumamba.data.locations import count_values, sample_locations
from uumamba.data.preprocess import PreprocessRecipe
from uumamba.runtime.errors import CaseError, UsageError
from uumamba.runtime.files import whole_file, write_json
from uumamba.types import LabelMap

FORMAT_VERSION = 1
"""Raised whenever equal sources and recipe would give other arrays, so that old ones are prepared anew."""

RECIPE_NAME = "recipe.json"
FOREGROUND_NAME = "foreground"
CASE_NAME = "case.json"
_PREPARE = "run `uumamba prepare` again"


@dataclass(frozen=True)
class PreparedCase:
    """One prepared case; image and label are read-only maps of their files.

    Args:
        case_id: its name.
        image: float16 ``(C, Z, Y, X)``.
        label: uint8 ``(Z, Y, X)``.
        locations: int32 ``(n, 4)``, rows ``(class, z, y, x)``: at most 2000 voxels of each foreground class.
        geometry: the way back to the native grid.
    """

    case_id: str
    image: NDArray[np.float16]
    label: LabelMap
    locations: NDArray[np.int32]
    geometry: Geometry


@dataclass(frozen=True)
class PreparedFolder:
    """A folder that ``uumamba prepare`` finished.

    Args:
        path: the folder.

    Raises:
        UsageError: nothing was prepared there, or preparing it was never finished.
    """

    path: Path

    def __init__(self, path: Path | str) -> None:
        object.__setattr__(self, "path", Path(path))
        manifest, recipe = self.path / MANIFEST_NAME, self.path / RECIPE_NAME
        if not (manifest.is_file() and recipe.is_file()):
            raise UsageError(f"{self.path} holds no prepared cases; make them with `uumamba prepare`.")
        object.__setattr__(self, "manifest", Manifest.read(manifest))
        object.__setattr__(self, "recipe", _read_recipe(recipe))

    manifest: Manifest
    recipe: PreprocessRecipe

    def case(self, case_id: str) -> PreparedCase:
        """Open one case.

        Raises:
            UsageError: the manifest does not list it.
            CaseError: its files are missing or damaged.
        """
        return open_prepared(self.path, self.manifest.by_id(case_id).case_id)

    def sha256(self) -> str:
        """Hash of what training depends on: each training case's fold and key (its files' bytes and the recipe).

        Where the folder or the raw scans lie does not matter. No array is read.

        Raises:
            CaseError: a case is not prepared.
        """
        cases = self.manifest.select(split="training")
        stored = (_read_case_json(self.path / "cases" / case.case_id, case.case_id) for case in cases)
        keys = [[case.case_id, case.fold, each.get("key")] for case, each in zip(cases, stored, strict=True)]
        return hashlib.sha256(json.dumps([self.manifest.name, keys]).encode()).hexdigest()


def write_prepared(
    folder: Path | str,
    case_id: str,
    *,
    image: Iterable[NDArray[np.float32]],
    label: Iterable[LabelMap],
    geometry: Geometry,
    key: str,
) -> None:
    """Store a case, each file whole or absent, ``case.json`` last.

    Args:
        folder: the prepared folder.
        case_id: names the case's own folder.
        image: ``(1, Z, Y, X)``, or its planes in order, any number at a time; stored as float16, which a normalised
            image fits.
        label: ``(Z, Y, X)``, or its planes likewise.
        geometry: from :func:`uumamba.data.preprocess.preprocess`.
        key: :func:`source_key`'s.

    Raises:
        CaseError: a value does not fit float16.
        ValueError: the planes are fewer or more than the geometry's.
    """
    target = Path(folder) / "cases" / case_id
    (target / CASE_NAME).unlink(missing_ok=True)
    for leftover in target.glob(".unfinished-*"):  # of a process that was killed
        leftover.unlink()
    _write_array(target / "image.npy", (_halved(slab, case_id) for slab in image), (1, *geometry.prepared_shape))
    _write_array(target / "label.npy", label, geometry.prepared_shape)
    stored_label = _map_array(target, "label", case_id)
    counts = count_values(stored_label)
    with whole_file(target / "locations.npy") as unfinished, unfinished.open("wb") as file:
        np.save(file, sample_locations(stored_label, case_id=case_id, counts=counts), allow_pickle=False)
    voxels = counts.sum(axis=0)
    stored = {
        "format": FORMAT_VERSION,
        "key": key,
        "label_voxels": {str(value): int(voxels[value]) for value in np.flatnonzero(voxels)},
        "geometry": geometry.to_json(),
    }
    write_json(target / CASE_NAME, stored)


def open_prepared(folder: Path | str, case_id: str) -> PreparedCase:
    """Open a stored case; only its locations are read at once.

    Raises:
        CaseError: it is not there, incomplete, of another format version, or damaged.
    """
    source = Path(folder) / "cases" / case_id
    geometry = _geometry_of(_read_case_json(source, case_id), case_id)
    image, label = _map_array(source, "image", case_id), _map_array(source, "label", case_id)
    if image.shape[1:] != geometry.prepared_shape or label.shape != geometry.prepared_shape:
        found = f"its arrays have the shapes {image.shape} and {label.shape}, expected {geometry.prepared_shape}"
        raise CaseError(case_id, found, _PREPARE)
    locations: NDArray[np.int32] = np.array(_map_array(source, "locations", case_id))
    return PreparedCase(case_id, image, label, locations, geometry)


def is_prepared(folder: Path | str, case_id: str, *, key: str) -> bool:
    """Whether the case is stored, whole, and made from this source and recipe."""
    try:
        open_prepared(folder, case_id)
        return bool(_read_case_json(Path(folder) / "cases" / case_id, case_id).get("key") == key)
    except CaseError:
        return False


def stands(folder: Path | str, case: Case, *, recipe: PreprocessRecipe, structures: Mapping[str, int]) -> bool:
    """Whether a case is stored and made from its files as they are now; they are read only where it is stored at all.

    Raises:
        CaseError: a file cannot be read.
    """
    if not (Path(folder) / "cases" / case.case_id / CASE_NAME).is_file():
        return False
    return is_prepared(folder, case.case_id, key=source_key(case, recipe=recipe, structures=structures))


def source_key(case: Case, *, recipe: PreprocessRecipe, structures: Mapping[str, int]) -> str:
    """What a prepared case depends on, hashed: the bytes of its files, the recipe, the structures, the format version.

    Raises:
        CaseError: a file cannot be read.
    """
    settings = {"format": FORMAT_VERSION, "recipe": recipe.to_json(), "structures": dict(sorted(structures.items()))}
    return hash_case(case, settings)


def hash_case(case: Case, settings: Mapping[str, Any]) -> str:
    """The bytes of a case's files and some settings, hashed.

    Raises:
        CaseError: a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in (case.image, case.label):
        if path is not None:
            digest.update(_digest_of(path, case.case_id))
    return digest.hexdigest()


def _halved(slab: NDArray[np.float32], case_id: str) -> NDArray[np.float16]:
    if slab.size and max(-slab.min(), slab.max()) > np.finfo(np.float16).max:
        raise CaseError(case_id, "its normalised image exceeds float16's range", "check the recipe's normalisation")
    return torch.from_numpy(np.ascontiguousarray(slab)).half().numpy()


def _write_array(path: Path, slabs: Iterable[NDArray[Any]], shape: tuple[int, ...]) -> None:
    """Write an array of which only some planes are there at a time, as ``np.save`` writes a whole one."""
    written = 0
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        for slab in slabs:
            if written == 0:
                header = {"descr": np.lib.format.dtype_to_descr(slab.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(slab).data)
            written += slab.size
        if written != math.prod(shape):
            raise ValueError(f"{path.name} of the shape {shape} has {math.prod(shape)} voxels, got {written}.")


def _read_recipe(path: Path) -> PreprocessRecipe:
    try:
        return PreprocessRecipe.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path} is no preparation recipe ({error}); {_PREPARE}.") from None


def _read_case_json(source: Path, case_id: str) -> dict[str, Any]:
    try:
        stored = json.loads((source / CASE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CaseError(case_id, f"it is not prepared in {source.parent.parent}", _PREPARE) from None
    if not isinstance(stored, dict) or stored.get("format") != FORMAT_VERSION:
        raise CaseError(case_id, f"it was prepared in a format other than {FORMAT_VERSION}", _PREPARE)
    return stored


def _geometry_of(stored: Mapping[str, Any], case_id: str) -> Geometry:
    try:
        return Geometry.from_json(stored["geometry"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise CaseError(case_id, f"its prepared {CASE_NAME} is damaged", _PREPARE) from None


def _map_array(source: Path, name: str, case_id: str) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(source / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        raise CaseError(case_id, f"its prepared {name}.npy is missing or damaged", _PREPARE) from None
    return array


def _digest_of(path: Path, case_id: str) -> bytes:
    files = sorted(child for child in path.iterdir() if child.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for file in files:
        try:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise CaseError(case_id, f"{file} cannot be read ({reason})", "restore the file") from None
    return digest.digest()
