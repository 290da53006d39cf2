"""NRRD files (``.nrrd``, ``.nhdr``): the header and its voxels.

Teem, which ITK uses, accepts a wrong checksum of compressed voxels and ends the process on some damaged headers. The
format is described in https://teem.sourceforge.net/nrrd/format.html.
"""

import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.formats.stored_volume import LPS_TO_RAS, StoredVolume, drop_trailing_axes, make_header_error
from uumamba.data.formats.text_header import TextHeader, add_field, iterate_lines, parse_numbers
from uumamba.data.formats.voxel_stream import Compression, VoxelStream

NRRD_SUFFIXES = (".nrrd", ".nhdr")
_DTYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
_CODES = {name: code for code, names in _DTYPES.items() for name in names}
_COMPRESSIONS: dict[str, Compression] = {"raw": "none", "gzip": "gzip", "gz": "gzip"}
_SPACES = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": tuple(LPS_TO_RAS),
    "lps": tuple(LPS_TO_RAS),
}
_MILLIMETRES = {"mm", "millimeter", "millimeters", "millimetre", "millimetres", "???"}
_OTHER_NAMES = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}
_FRAME_KINDS = {"list", "time", "domain", "space", "???", "none"}
_MAGIC = re.compile(r"NRRD000[1-6]")
_CONVERT = "save the scan again as one .nrrd file with raw or gzip encoding"


def count_nrrd_frames(path: Path, *, case_id: str) -> int:
    """Return the number of frames in a header, from 1 on.

    Raises:
        CaseError: the header is damaged.
    """
    header = _read_header(path, case_id)
    sizes = header.read_integers("sizes", least=1)
    axis = _find_frame_axis(header, sizes)
    return 1 if axis is None else sizes[axis]


def open_nrrd(path: Path, *, case_id: str, frames: int = 1) -> StoredVolume:
    """Read the header of an NRRD file, such as ``scan.nrrd`` or ``labels.seg.nrrd``.

    The voxels are in the file or in one other file of its folder, compressed with gzip or not. The header must have
    ``space`` and ``space directions``: without them, left and right are not known. Frames are the axis without a
    direction.

    Raises:
        CaseError: the header is damaged, or describes no volume of numbers in the patient's space.
    """
    header = _read_header(path, case_id)
    sizes = header.read_integers("sizes", least=1)
    header.require(
        header.read_integers("dimension", least=1) == (len(sizes),), "dimension", expected=f"{len(sizes)} as in sizes"
    )
    if frames == 1 and sum(size > 1 for size in sizes) > 3:
        drop_trailing_axes(sizes, case_id)  # raises before a space of four axes is called unknown
    to_ras, vectors = _read_space(header), _read_directions(header, len(sizes))
    frame_axis = _find_frame_axis(header, sizes) if frames > 1 else None
    if frame_axis is not None:
        sizes, vectors = _leave_out(sizes, frame_axis), list(_leave_out(vectors, frame_axis))
    spatial = [axis for axis, size in enumerate(sizes) if vectors[axis] is not None or size > 1]
    shape, dtype = drop_trailing_axes(tuple(sizes[axis] for axis in spatial), case_id), _read_dtype(header)
    columns = [vector for vector in vectors if vector is not None]
    header.require(len(spatial) == len(columns) == 3, "space directions", expected="3 axes", fix="give a 3-D scan")
    stream = _find_voxels(header, math.prod(shape) * frames * dtype.itemsize)
    spacing = np.linalg.norm(columns, axis=1)
    with np.errstate(all="ignore"):  # open_scan refuses an axis without a length by its spacing
        directions = np.transpose(columns) / spacing
    origin = _parse_vector(header.read_text("space origin", "(0,0,0)"))
    header.require(len(origin) == 3, "space origin", expected="3 numbers")
    return StoredVolume(
        path=path,
        shape=shape,
        dtype=dtype,
        directions=to_ras[:, None] * directions,
        origin_mm=to_ras * origin,
        spacing_mm=spacing,
        spacing_key="space directions",
        voxels=partial(stream.read_native, shape, dtype, case_id=case_id, frames=frames, frame_axis=frame_axis or 0),
        is_complete=partial(stream.has_length, math.prod(shape) * frames * dtype.itemsize),
        channels=frames,
    )


def _read_header(path: Path, case_id: str) -> TextHeader:
    lines = iterate_lines(path, case_id)
    first, _ = next(lines, ("", 0))
    if not _MAGIC.fullmatch(first):
        raise make_header_error(case_id, path, f"the first line {first[:20]!r}", expected="NRRD0001 to NRRD0006")
    fields: dict[str, str] = {}
    for line, position in lines:
        if not line.strip():
            return TextHeader(path, case_id, fields, position)
        key, colon, value = line.partition(":")
        if not line.startswith("#") and colon and not value.startswith("="):  # := is a note of a program
            key = key.strip().lower()
            add_field(fields, _OTHER_NAMES.get(key, key), value.strip(), path=path, case_id=case_id)
    header = TextHeader(path, case_id, fields, path.stat().st_size)
    header.require("data file" in fields, "data file", expected="an empty line after the header, or a data file")
    return header


def _read_dtype(header: TextHeader) -> np.dtype[Any]:
    name = header.read_text("type").lower()
    header.require(name in _CODES, "type", expected="an integer or real type", fix=_CONVERT)
    code = _CODES[name]
    if code.endswith("1"):
        return np.dtype(code)
    order = header.read_text("endian").lower()
    header.require(order in ("little", "big"), "endian", expected="little or big")
    return np.dtype(("<" if order == "little" else ">") + code)


def _read_space(header: TextHeader) -> NDArray[np.float64]:
    space = header.read_text("space").lower()
    units = set(header.read_text("space units", "").lower().replace('"', " ").split())
    header.require(units <= _MILLIMETRES, "space units", expected="mm", fix="save the scan again in mm")
    header.require(space in _SPACES, "space", expected=f"one of {', '.join(_SPACES)}", fix=_CONVERT)
    return np.array(_SPACES[space], dtype=np.float64)


def _read_directions(header: TextHeader, axes: int) -> list[NDArray[np.float64] | None]:
    """Read the vector of each axis.

    It is None for an axis that is not in space.
    """
    words = re.sub(r"\s*,\s*", ",", header.read_text("space directions")).split()
    header.require(len(words) == axes, "space directions", expected=f"{axes} vectors")
    vectors = [None if word.lower() == "none" else _parse_vector(word) for word in words]
    is_valid = all(vector is None or len(vector) == 3 for vector in vectors)
    header.require(is_valid, "space directions", expected="vectors of 3 numbers")
    return vectors


def _find_frame_axis(header: TextHeader, sizes: tuple[int, ...]) -> int | None:
    """Return the axis of frames, or None.

    It is the only axis of several voxels without a direction, unless its kind is one of colours or vectors.
    """
    words = re.sub(r"\s*,\s*", ",", header.fields.get("space directions", "")).split()
    kinds = header.fields.get("kinds", "").lower().split()
    found = [axis for axis, word in enumerate(words) if word.lower() == "none" and sizes[axis : axis + 1] > (1,)]
    if len(sizes) != 4 or len(words) != 4 or len(found) != 1:
        return None
    return found[0] if len(kinds) != 4 or kinds[found[0]] in _FRAME_KINDS else None


def _leave_out(values: Sequence[Any], index: int) -> tuple[Any, ...]:
    return (*values[:index], *values[index + 1 :])


def _parse_vector(text: str) -> NDArray[np.float64]:
    text = text.strip()
    return parse_numbers(text[1:-1].split(",")) if text.startswith("(") and text.endswith(")") else np.empty(0)


def _find_voxels(header: TextHeader, nbytes: int) -> VoxelStream:
    encoding = header.read_text("encoding").lower()
    header.require(encoding in _COMPRESSIONS, "encoding", expected="raw or gzip", fix=_CONVERT)
    header.require(header.read_text("line skip", "0") == "0", "line skip", expected="0", fix=_CONVERT)
    name = header.read_text("data file", "")
    header.require(not re.search(r"%|\s\d|^LIST", name), "data file", expected="one file name", fix=_CONVERT)
    path = header.find_data_file(name, "data file") if name else header.path
    start, skip = 0 if name else header.length, 0
    if "byte skip" in header.fields:
        skip = header.read_integers("byte skip", least=-1)[0]
    if skip == -1:
        header.require(encoding == "raw", "byte skip", expected="no -1 with compressed voxels", fix=_CONVERT)
        start, skip = max(path.stat().st_size - nbytes, start), 0
    return VoxelStream(path, _COMPRESSIONS[encoding], start=start, skip=skip)
