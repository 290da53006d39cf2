"""Prepared cases on disk, as memory-mapped arrays.

A prepared folder holds ``dataset.json`` (manifest with raw paths), ``recipe.json``, for computed CT statistics the
samples ``foreground/<case_id>.npz``, and for each case ``cases/<case_id>/`` with ``image.npy`` (float16
``(C, Z, Y, X)``), ``label.npy`` (uint8 ``(Z, Y, X)``), ``locations.npy`` (int32 ``(n, 4)``) and ``case.json``. The file
``case.json`` is written last; a case without it is absent.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from uumamba.data.array_file import write_array
from uumamba.data.case import MANIFEST_NAME, Case, Manifest
from uumamba.data.geometry import Geometry
from uumamba.data.label_scheme import IGNORED, number_classes
from uumamba.data.locations import count_values, sample_locations
from uumamba.data.recipe import PreprocessRecipe
from uumamba.data.source_key import FORMAT_VERSION, source_key
from uumamba.data.stored_json import read_json
from uumamba.runtime.errors import CaseError, UsageError, require, require_case
from uumamba.runtime.files import describe_path, find_read_fix, open_regular, remove_file, write_json
from uumamba.types import LabelMap

RECIPE_NAME = "recipe.json"
FOREGROUND_NAME = "foreground"
CASE_NAME = "case.json"
_PREPARE = "run `uumamba prepare` again"


@dataclass(frozen=True)
class PreparedCase:
    """Prepared case, with read-only memory maps of image and label.

    Args:
        case_id: name of the case.
        image: float16 ``(C, Z, Y, X)``.
        label: uint8 ``(Z, Y, X)``.
        locations: int32 ``(n, 4)``, rows ``(class, z, y, x)``: at most 2000 voxels of each foreground class, and of
            annotated background (class 0) in data sets with ignored voxels.
        geometry: inverse of the preparation, to the native grid.
        label_voxels: number of voxels of each class; empty for cases of older versions.
    """

    case_id: str
    image: NDArray[np.float16]
    label: LabelMap
    locations: NDArray[np.int32]
    geometry: Geometry
    label_voxels: Mapping[int, int] = field(default_factory=dict)


class PreparedFolder:
    """Complete folder of ``uumamba prepare``.

    Attributes:
        path: the folder.
        manifest: list of the cases.
        recipe: preprocessing of the cases.

    Args:
        path: the folder.

    Raises:
        UsageError: the folder holds no prepared cases, or the preparation is not complete.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        require(
            all((self.path / name).is_file() for name in (MANIFEST_NAME, RECIPE_NAME)),
            "path",
            got=describe_path(path),
            expected="a folder of prepared cases",
            fix="run `uumamba prepare`",
        )
        self.recipe = read_json(
            self.path / RECIPE_NAME, TypeAdapter(PreprocessRecipe), expected="a preparation recipe", fix=_PREPARE
        )
        self.manifest = Manifest.read(self.path)

    def verify(self, case_ids: Iterable[str], *, threads: int = 2) -> None:
        """Check that the arrays of cases are those that were prepared.

        Every byte is read once, at some 300 MB/s and core.

        Raises:
            CaseError: the first case whose files are missing or were changed; see :func:`verify_prepared`.
        """
        manifest = self.manifest
        verify = partial(verify_prepared, self.path, structures=manifest.structures, ignore_value=manifest.ignore_value)
        with ThreadPoolExecutor(threads) as pool:  # hashing leaves Python's lock to other threads
            for _ in pool.map(verify, case_ids):
                pass

    def find_classes(self, case_id: str) -> set[int] | None:
        """Return the classes of a case's voxels.

        None if an older version did not store them.

        Raises:
            CaseError: the case is not prepared.
        """
        return {int(value) for value in _read_case_file(self.path, case_id).label_voxels} or None

    def case(self, case_id: str) -> PreparedCase:
        """Open one case.

        Raises:
            UsageError: the manifest does not list the case.
            CaseError: files of the case are missing or damaged.
        """
        return open_prepared(self.path, self.manifest.by_id(case_id).case_id)

    def geometries(self, case_ids: Iterable[str]) -> Iterator[Geometry]:
        """Return the geometry of each case."""
        return (self.case(case_id).geometry for case_id in case_ids)

    def sha256(self) -> str:
        """Hash the training data.

        The hash depends on the fold and the key of each training case (bytes of its files, and the recipe), not on the
        location of files. No array is read.

        Raises:
            CaseError: a case is not prepared.
        """
        keys = [
            [case.case_id, case.fold, _read_case_file(self.path, case.case_id).key]
            for case in self.manifest.select(split="training")
        ]
        return hashlib.sha256(json.dumps([self.manifest.name, keys]).encode()).hexdigest()


def write_prepared(
    folder: Path | str,
    case_id: str,
    *,
    image: Iterable[NDArray[np.float32]],
    label: Iterable[LabelMap],
    geometry: Geometry,
    key: str,
    channels: int = 1,
    ignore_label: int | None = None,
) -> None:
    """Store a case, each file atomically and ``case.json`` last.

    Args:
        folder: the prepared folder.
        case_id: name of the case's folder.
        image: ``(C, Z, Y, X)``, or slabs of planes in order, channel after channel; stored as float16, which suffices
            for a normalised image.
        label: ``(Z, Y, X)``, or slabs of planes in order.
        geometry: geometry of :func:`uumamba.data.preprocess.preprocess`.
        key: key of :func:`uumamba.data.source_key.source_key`.
        channels: number of channels.
        ignore_label: class of ignored voxels; None in a data set without.

    Raises:
        CaseError: a value does not fit float16.
        UsageError: the number of planes differs from the geometry.
    """
    target = Path(folder) / "cases" / case_id
    remove_file(target / CASE_NAME)
    for unfinished in target.glob(".unfinished-*"):  # of a killed process
        remove_file(unfinished)
    shape = geometry.prepared_shape
    hashes = {
        "image": write_array(target / "image.npy", (_as_float16(slab, case_id) for slab in image), (channels, *shape)),
        "label": write_array(target / "label.npy", label, shape),
    }
    stored_label = _map_array(target, "label", case_id)
    counts = count_values(stored_label)
    locations = sample_locations(stored_label, case_id=case_id, counts=counts, ignore_label=ignore_label)
    hashes["locations"] = write_array(target / "locations.npy", [locations], locations.shape)
    voxels = counts.sum(axis=0)
    write_json(
        target / CASE_NAME,
        {
            "format": FORMAT_VERSION,
            "key": key,
            "label_voxels": {str(value): int(voxels[value]) for value in np.flatnonzero(voxels)},
            "sha256": hashes,
            "geometry": asdict(geometry),
        },
    )


def open_prepared(folder: Path | str, case_id: str) -> PreparedCase:
    """Open a stored case; only its locations are read into memory.

    Raises:
        CaseError: the case is absent, incomplete, of another format version, or damaged.
    """
    stored = _read_case_file(folder, case_id)
    geometry = stored.geometry
    source = Path(folder) / "cases" / case_id
    image, label = _map_array(source, "image", case_id), _map_array(source, "label", case_id)
    shape = geometry.prepared_shape
    require_case(
        image.shape[1:] == shape and label.shape == shape,
        case_id,
        "shape",
        got=f"{image.shape} and {label.shape}",
        expected=f"the geometry's {shape}",
        fix=_PREPARE,
    )
    locations = np.array(_map_array(source, "locations", case_id))
    return PreparedCase(case_id, image, label, locations, geometry, stored.label_voxels)


def is_up_to_date(
    folder: Path | str,
    case: Case,
    *,
    recipe: PreprocessRecipe,
    structures: Mapping[str, int],
    ignore_value: int | None = None,
) -> bool:
    """Return whether a complete stored case matches its current files.

    The files are read only if the case is stored.

    Raises:
        CaseError: a source file cannot be read.
    """
    try:
        stored = _read_case_file(folder, case.case_id)
        verify_prepared(folder, case.case_id, structures=structures, ignore_value=ignore_value)
    except CaseError:
        return False
    return stored.key == source_key(case, recipe=recipe, structures=structures, ignore_value=ignore_value)


def verify_prepared(
    folder: Path | str, case_id: str, *, structures: Mapping[str, int], ignore_value: int | None = None
) -> None:
    """Check that a stored case's arrays are unchanged.

    Every byte is read once. A case of an older version has no hashes; of its arrays the values are checked.

    Args:
        folder: the prepared folder.
        case_id: name of the case.
        structures: label value of each structure.
        ignore_value: label value of ignored voxels; None if there are none.

    Raises:
        CaseError: a file is absent or was changed, or holds a label of no structure or a value that is not finite.
    """
    prepared, stored = open_prepared(folder, case_id), _read_case_file(folder, case_id)
    source = Path(folder) / "cases" / case_id
    for name, expected in stored.sha256.items():
        with open_regular(source / f"{name}.npy") as stream:
            require_case(
                hashlib.file_digest(stream, "sha256").hexdigest() == expected,
                case_id,
                str(source / f"{name}.npy"),
                got="other bytes than those that were prepared",
                expected="an unchanged file",
                fix=_PREPARE,
            )
    values = {int(value) for value in stored.label_voxels}
    if not stored.sha256:
        values = {int(value) for value in np.flatnonzero(count_values(prepared.label).sum(axis=0))}
        is_finite = all(np.isfinite(plane).all() for channel in prepared.image for plane in channel)
        require_case(
            is_finite,
            case_id,
            str(source / "image.npy"),
            got="NaN or infinity",
            expected="finite values, as prepared",
            fix=_PREPARE,
        )
    unknown = sorted(
        values - {0, *number_classes(structures).values()} - (set() if ignore_value is None else {IGNORED})
    )
    require_case(
        not unknown,
        case_id,
        str(source / "label.npy"),
        got=f"the label {', '.join(map(str, unknown[:5]))}",
        expected=f"0 to {len(structures)}",
        fix=_PREPARE,
    )


@dataclass(frozen=True)
class _CaseFile:
    """Content of ``case.json``; older files have no hashes of their arrays."""

    format: int
    geometry: Geometry
    key: str = ""
    label_voxels: Mapping[int, int] = field(default_factory=dict)
    sha256: Mapping[Literal["image", "label", "locations"], str] = field(default_factory=dict)


def _read_case_file(folder: Path | str, case_id: str) -> _CaseFile:
    path = Path(folder) / "cases" / case_id / CASE_NAME
    try:
        stored = read_json(path, TypeAdapter(_CaseFile), expected="a prepared case", fix=_PREPARE)
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
    largest, limit = float(np.maximum(-slab.min(initial=0), slab.max(initial=0))), float(np.finfo(np.float16).max)
    require_case(
        largest <= limit,
        case_id,
        "image",
        got=largest,
        expected=f"a normalised value of at most {limit:g} (float16)",
        fix="check the normalisation of the recipe",
    )
    return torch.from_numpy(np.ascontiguousarray(slab)).half().numpy()


def _map_array(source: Path, name: str, case_id: str) -> NDArray[Any]:
    path = source / f"{name}.npy"
    try:
        open_regular(path).close()
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        fix = find_read_fix(error, otherwise=_PREPARE)
        raise CaseError(case_id, str(path), got=error.strerror, expected="a readable array", fix=fix) from None
    except (ValueError, EOFError) as error:
        raise CaseError(case_id, str(path), got=str(error), expected="a complete array", fix=_PREPARE) from None
    return array
