"""Prepared cases on disk: memory-mapped arrays, and a JSON that marks them complete.

``PREPARED/dataset.json`` (manifest with raw paths), ``PREPARED/recipe.json``, where statistics of CT were found the
samples ``PREPARED/foreground/<case_id>.npz``, and for each case
``PREPARED/cases/<case_id>/`` with ``image.npy`` (float16 ``(C, Z, Y, X)``), ``label.npy`` (uint8 ``(Z, Y, X)``),
``locations.npy`` (int32 ``(n, 4)``) and ``case.json``. That last file is written last: without it the case is absent.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from uumamba.data.case import MANIFEST_NAME, Case, Manifest
from uumamba.data.geometry import Geometry
from uumamba.data.locations import count_values, sample_locations
from uumamba.data.recipe import PreprocessRecipe
from uumamba.data.stored_json import read_json
from uumamba.runtime.errors import CaseError, UsageError, require, require_case
from uumamba.runtime.files import whole_file, write_json
from uumamba.types import LabelMap

FORMAT_VERSION = 1
"""Increase it whenever equal sources and recipe would give other arrays, so that old ones are prepared again."""

RECIPE_NAME = "recipe.json"
FOREGROUND_NAME = "foreground"
CASE_NAME = "case.json"
_PREPARE = "run `uumamba prepare` again"


@dataclass(frozen=True)
class PreparedCase:
    """One prepared case; image and label are read-only memory maps of their files.

    Args:
        case_id: its name.
        image: float16 ``(C, Z, Y, X)``.
        label: uint8 ``(Z, Y, X)``.
        locations: int32 ``(n, 4)``, rows ``(class, z, y, x)``: at most 2000 voxels of each foreground class.
        geometry: inverse of the preparation, to the native grid.
    """

    case_id: str
    image: NDArray[np.float16]
    label: LabelMap
    locations: NDArray[np.int32]
    geometry: Geometry


class PreparedFolder:
    """A folder that ``uumamba prepare`` finished.

    Attributes:
        path: the folder.
        manifest: its cases.
        recipe: their preprocessing.

    Args:
        path: the folder.

    Raises:
        UsageError: nothing was prepared there, or preparing it was never finished.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        require(
            all((self.path / name).is_file() for name in (MANIFEST_NAME, RECIPE_NAME)),
            "prepared folder",
            got=str(path),
            expected="a folder of prepared cases",
            fix="make them with `uumamba prepare`",
        )
        self.recipe = read_json(
            self.path / RECIPE_NAME, TypeAdapter(PreprocessRecipe), expected="a preparation recipe", fix=_PREPARE
        )
        self.manifest = Manifest.read(self.path)

    def case(self, case_id: str) -> PreparedCase:
        """Open one case.

        Raises:
            UsageError: the manifest does not list it.
            CaseError: its files are missing or damaged.
        """
        return open_prepared(self.path, self.manifest.by_id(case_id).case_id)

    def sha256(self) -> str:
        """Hash what training depends on.

        This is each training case's fold and key (its files' bytes and the recipe). Where the folder or the raw scans
        lie does not matter. No array is read.

        Raises:
            CaseError: a case is not prepared.
        """
        cases = self.manifest.select(split="training")
        keys = [[case.case_id, case.fold, _read_case_file(self.path, case.case_id).key] for case in cases]
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
        label: ``(Z, Y, X)``, or its planes in order.
        geometry: from :func:`uumamba.data.preprocess.preprocess`.
        key: :func:`source_key`'s.

    Raises:
        CaseError: a value does not fit float16.
        UsageError: the planes are fewer or more than the geometry's.
    """
    target = Path(folder) / "cases" / case_id
    (target / CASE_NAME).unlink(missing_ok=True)
    for leftover in target.glob(".unfinished-*"):  # of a process that was killed
        leftover.unlink()
    _write_array(target / "image.npy", (_as_float16(slab, case_id) for slab in image), (1, *geometry.prepared_shape))
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
        "geometry": asdict(geometry),
    }
    write_json(target / CASE_NAME, stored)


def open_prepared(folder: Path | str, case_id: str) -> PreparedCase:
    """Open a stored case; only its locations are read at once.

    Raises:
        CaseError: it is not there, incomplete, of another format version, or damaged.
    """
    geometry = _read_case_file(folder, case_id).geometry
    source = Path(folder) / "cases" / case_id
    image, label = _map_array(source, "image", case_id), _map_array(source, "label", case_id)
    found, shape = f"{image.shape} and {label.shape}", geometry.prepared_shape
    require_case(
        image.shape[1:] == shape and label.shape == shape,
        case_id,
        "shape",
        got=found,
        expected=f"the geometry's {shape}",
        fix=_PREPARE,
    )
    locations: NDArray[np.int32] = np.array(_map_array(source, "locations", case_id))
    return PreparedCase(case_id, image, label, locations, geometry)


def is_up_to_date(folder: Path | str, case: Case, *, recipe: PreprocessRecipe, structures: Mapping[str, int]) -> bool:
    """Check that a case is stored whole and from its present files.

    They are read only where the case is stored.

    Raises:
        CaseError: a file of the source cannot be read.
    """
    if not (Path(folder) / "cases" / case.case_id / CASE_NAME).is_file():
        return False
    key = source_key(case, recipe=recipe, structures=structures)
    try:
        open_prepared(folder, case.case_id)
        return _read_case_file(folder, case.case_id).key == key
    except CaseError:
        return False


def source_key(case: Case, *, recipe: PreprocessRecipe, structures: Mapping[str, int]) -> str:
    """Hash all that a prepared case depends on.

    These are the bytes of its files, the recipe, the structures and the format version.

    Raises:
        CaseError: a file cannot be read.
    """
    settings = {"format": FORMAT_VERSION, "recipe": recipe.to_json(), "structures": dict(sorted(structures.items()))}
    return hash_case(case, settings)


def hash_case(case: Case, settings: Mapping[str, Any]) -> str:
    """Hash the bytes of a case's files and some settings.

    Raises:
        CaseError: a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in (case.image, case.label):
        if path is not None:
            digest.update(_digest_of(path, case.case_id))
    return digest.hexdigest()


@dataclass(frozen=True)
class _CaseFile:
    """Content of ``case.json``, as far as it is read back."""

    format: int
    geometry: Geometry
    key: str = ""


_CASE_FILE = TypeAdapter(_CaseFile)


def _read_case_file(folder: Path | str, case_id: str) -> _CaseFile:
    path = Path(folder) / "cases" / case_id / CASE_NAME
    try:
        stored = read_json(path, _CASE_FILE, expected="a prepared case", fix=_PREPARE)
    except UsageError as error:
        raise CaseError(case_id, error.key, got=error.got, expected=error.expected, fix=error.fix) from None
    require_case(
        stored.format == FORMAT_VERSION,
        case_id,
        f"{path}: format",
        got=stored.format,
        expected=str(FORMAT_VERSION),
        fix=_PREPARE,
    )
    return stored


def _as_float16(slab: NDArray[np.float32], case_id: str) -> NDArray[np.float16]:
    largest, limit = float(max(-slab.min(initial=0), slab.max(initial=0))), float(np.finfo(np.float16).max)
    require_case(
        largest <= limit,
        case_id,
        "image",
        got=largest,
        expected=f"at most {limit:g} once normalised (float16)",
        fix="check the recipe's normalisation",
    )
    return torch.from_numpy(np.ascontiguousarray(slab)).half().numpy()


def _write_array(path: Path, slabs: Iterable[NDArray[Any]], shape: tuple[int, ...]) -> None:
    """Write an array slab by slab, in the bytes that ``np.save`` writes."""
    written = 0
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        for slab in slabs:
            if written == 0:
                header = {"descr": np.lib.format.dtype_to_descr(slab.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(slab).data)
            written += slab.size
        require(
            written == math.prod(shape),
            path.name,
            got=f"{written} voxels",
            expected=f"{math.prod(shape)} of the shape {shape}",
        )


def _map_array(source: Path, name: str, case_id: str) -> NDArray[Any]:
    path = source / f"{name}.npy"
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CaseError(case_id, str(path), got=str(error), expected="a whole array", fix=_PREPARE) from None
    return array


def _digest_of(path: Path, case_id: str) -> bytes:
    digest = hashlib.sha256()
    try:
        for file in sorted(child for child in path.iterdir() if child.is_file()) if path.is_dir() else [path]:
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise CaseError(
            case_id,
            "file",
            got=f"{error.filename} ({error.strerror})",
            expected="a readable file",
            fix="restore the file",
        ) from None
    return digest.digest()
