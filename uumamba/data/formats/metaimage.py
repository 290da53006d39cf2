"""MetaImage files (``.mha``, ``.mhd``): the header and its voxels.

Neither ITK nor MetaIO reads them: MetaIO ignores the checksum of compressed voxels, fills what is missing with other
memory, and ends the process on some damaged headers. The format is described in
https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.formats.stored_volume import (
    LPS_TO_RAS,
    StoredVolume,
    count_frames,
    drop_trailing_axes,
    find_frame_ms,
    make_header_error,
)
from uumamba.data.formats.text_header import TextHeader, add_field, iterate_lines, parse_numbers
from uumamba.data.formats.voxel_stream import VoxelStream
from uumamba.runtime.errors import require_case

METAIMAGE_SUFFIXES = (".mha", ".mhd")
_DTYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_OTHER_NAMES = {
    "Origin": "Offset",
    "Position": "Offset",
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
_SCALING = {"ElementToIntensityFunctionSlope": 1.0, "ElementToIntensityFunctionOffset": 0.0}  # ITK ignores others
_CONVERT = "convert the scan to one .mha file with binary voxels, unscaled and in mm"


def count_metaimage_frames(path: Path, *, case_id: str) -> int:
    """Return the number of frames in a header, from 1 on.

    Raises:
        CaseError: the header is damaged.
    """
    return count_frames(_read_header(path, case_id).read_integers("DimSize", least=1))


def open_metaimage(path: Path, *, case_id: str, frames: int = 1) -> StoredVolume:
    """Read the header of a MetaImage file; frames are the fourth axis.

    The voxels are in the file or in one other file of its folder, compressed with zlib or not. Without a
    ``TransformMatrix`` the axes are those of the patient, as the format says; the spacing has no default.

    Raises:
        CaseError: the header is damaged, or describes no volume of numbers.
    """
    header = _read_header(path, case_id)
    sizes = header.read_integers("DimSize", least=1)
    axes = len(sizes)
    header.require(header.read_integers("NDims", least=1) == (axes,), "NDims", expected=f"{axes} axes as in DimSize")
    shape, dtype = drop_trailing_axes(sizes[:3] if frames > 1 else sizes, case_id), _read_dtype(header)
    header.require(header.read_text("DistanceUnits", "mm") in ("mm", "?"), "DistanceUnits", expected="mm", fix=_CONVERT)
    for key, value in _SCALING.items():
        found = header.read_numbers(key, 1) if key in header.fields else value
        header.require(found == value, key, expected=f"{value:g}", fix=_CONVERT)
    stream = _find_voxels(header, math.prod(shape) * frames * dtype.itemsize)
    matrix = header.read_numbers("TransformMatrix", axes**2) if "TransformMatrix" in header.fields else np.eye(axes)
    origin = header.read_numbers("Offset", axes) if "Offset" in header.fields else np.zeros(axes)
    directions = _extend(matrix.reshape(axes, axes).T)  # a row of the field is an axis
    return StoredVolume(
        path=path,
        shape=shape,
        dtype=dtype,
        directions=LPS_TO_RAS[:, None] * directions,
        origin_mm=LPS_TO_RAS * np.pad(origin, (0, 2))[:3],
        spacing_mm=_read_spacing(header, axes),
        spacing_key="ElementSpacing",
        voxels=partial(stream.read_native, shape, dtype, case_id=case_id, frames=frames),
        is_complete=partial(stream.has_length, math.prod(shape) * frames * dtype.itemsize),
        channels=frames,
        frame_ms=_find_frame_ms(header),
    )


def _read_header(path: Path, case_id: str) -> TextHeader:
    fields: dict[str, str] = {}
    for line, position in iterate_lines(path, case_id):
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals:
            break
        if key == "Comment":
            continue
        add_field(fields, _OTHER_NAMES.get(key, key), value, path=path, case_id=case_id)
        if key == "ElementDataFile":  # the last line, by the format
            return TextHeader(path, case_id, fields, position)
    found = f"a header of {len(fields)} fields that ends before ElementDataFile"
    raise make_header_error(case_id, path, found, expected="the field ElementDataFile")


def _read_dtype(header: TextHeader) -> np.dtype[Any]:
    kind = header.read_text("ElementType")
    header.require(kind in _DTYPES, "ElementType", expected=f"one of {', '.join(_DTYPES)}", fix=_CONVERT)
    channels = header.read_text("ElementNumberOfChannels", "1")
    require_case(
        channels == "1",
        header.case_id,
        "shape",
        got=f"{channels} values per voxel",
        expected="one value per voxel",
        fix="give one scalar volume",
    )
    header.require(_is_true(header, "BinaryData"), "BinaryData", expected="True", fix=_CONVERT)
    order = ">" if _is_true(header, "BinaryDataByteOrderMSB") else "<"
    return np.dtype(order + _DTYPES[kind])


def _read_spacing(header: TextHeader, axes: int) -> NDArray[np.float64]:
    """Read the distance of voxels, or else their size.

    They differ by the gap between slices.
    """
    spacing = np.ones(3)  # a 2-D image has no third spacing
    key = next((key for key in ("ElementSpacing", "ElementSize") if key in header.fields), None)
    known = np.full(axes, np.nan) if key is None else header.read_numbers(key, axes)
    spacing[:axes] = known[:3]
    return spacing


def _find_frame_ms(header: TextHeader) -> float | None:
    """Return the fourth spacing, in milliseconds if plausible."""
    key = "ElementSpacing"
    steps = parse_numbers(header.fields.get(key, "").split())
    return find_frame_ms(float(steps[3]), None) if len(steps) > 3 else None


def _find_voxels(header: TextHeader, nbytes: int) -> VoxelStream:
    name = header.read_text("ElementDataFile")
    header.require(
        name.upper() != "LIST" and "%" not in name, "ElementDataFile", expected="LOCAL or one file name", fix=_CONVERT
    )
    is_local = name.upper() == "LOCAL"
    path = header.path if is_local else header.find_data_file(name, "ElementDataFile")
    is_compressed = _is_true(header, "CompressedData")
    skip = header.read_integers("HeaderSize", least=-1)[0] if "HeaderSize" in header.fields else 0
    if skip == -1:
        header.require(not is_compressed, "HeaderSize", expected="no -1 with compressed voxels", fix=_CONVERT)
        return VoxelStream(path, start=max(path.stat().st_size - nbytes, header.length if is_local else 0))
    return VoxelStream(path, "zlib" if is_compressed else "none", start=header.length if is_local else skip)


def _is_true(header: TextHeader, key: str) -> bool:
    value = header.read_text(key, "False").lower()
    header.require(value in ("true", "false", "1", "0"), key, expected="True or False")
    return value in ("true", "1")


def _extend(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the first three axes of a matrix, completed with unit axes."""
    axes = min(len(matrix), 3)
    extended = np.eye(3)
    extended[:axes, :axes] = matrix[:axes, :axes]
    return extended
