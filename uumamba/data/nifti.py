"""NIfTI files: bytes in, a checked header and array out; an array in, bytes with a given header out."""

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from uumamba.data.chunks import converted
from uumamba.data.grid import displacement_voxels, nearest_orthogonal
from uumamba.data.warn import warn_of_acdc_spacing, warn_repaired
from uumamba.runtime.errors import CaseError

MAX_VOLUME_BYTES = 8 * 2**30
"""The largest volume, uncompressed, that is read; a gzip bomb unpacks to no more than this."""

_GZIP_MAGIC = b"\x1f\x8b"
_LONGEST_HEADER = 544
_PIECE = 2**18  # read and unpacked at a time, so that a file is in memory once
_SLACK_BYTES = 2**20  # padding that some writers leave behind the voxels
_SCALE_TOLERANCE = 1e-3
_MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
_RESTORE = "restore the file from its source"
_CONVERT = "convert the scan anew from its source"


@dataclass(frozen=True)
class NiftiVolume:
    """Voxels as stored (with the header's scaling applied), the physical affine, the spacing, and the header."""

    array: NDArray[Any]
    affine: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    header: Any


def is_nifti_name(path: Path) -> bool:
    """Whether the name ends as NIfTI files do."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_nifti(path: Path, *, case_id: str, max_bytes: int = MAX_VOLUME_BYTES) -> NiftiVolume:
    """Read a single-file NIfTI-1 or -2, compressed or not, whatever its name says.

    A trailing axis of size 1 is dropped, a 2-D image gets a third axis of size 1.

    Raises:
        CaseError: the file cannot be read, or anything in header or data is not as it must be.
    """
    try:
        with path.open("rb") as file:
            return _read(file, path, case_id, max_bytes)
    except OSError as error:
        raise CaseError(case_id, f"{path.name} cannot be read ({error.strerror})", _RESTORE) from None


def _read(file: BinaryIO, path: Path, case_id: str, max_bytes: int) -> NiftiVolume:
    first = file.read(_PIECE)
    if not first:
        raise CaseError(case_id, f"{path.name} is empty (0 bytes)", _RESTORE)
    compressed = first.startswith(_GZIP_MAGIC)
    if compressed != path.name.lower().endswith(".gz"):
        warn_repaired(
            case_id, f"{path.name} is {'' if compressed else 'not '}compressed, against its name; read as it is"
        )
    rest = iter(partial(file.read, _PIECE), b"")
    pieces = _unpacked(first, file, case_id, path) if compressed else chain([first], rest)
    content = bytearray()
    while len(content) < _LONGEST_HEADER and (piece := next(pieces, b"")):
        content += piece
    header = _parse_header(bytes(content[:_LONGEST_HEADER]), case_id, path)
    shape = _checked_shape(header, case_id)
    dtype = _checked_dtype(header, case_id)
    offset = _checked_offset(header, case_id)
    end = offset + math.prod(shape) * dtype.itemsize
    if end > max_bytes:
        found = f"its header announces {end / 2**30:.1f} GiB, the limit is {max_bytes / 2**30:.1f}"
        raise CaseError(case_id, found, "crop or downsample the scan")
    for piece in pieces:
        content += piece
        if compressed and len(content) > end + _SLACK_BYTES:
            found = f"{path.name} unpacks to far more than the volume that its header announces"
            raise CaseError(case_id, found, _RESTORE)
    if len(content) < end:
        found = f"{path.name} ends after {len(content)} of {end} bytes"
        raise CaseError(case_id, found, _RESTORE)
    voxels = np.frombuffer(content, dtype, math.prod(shape), offset).reshape(shape, order="F")
    affine, spacing_mm = _physical_grid(header, case_id)
    return NiftiVolume(_scaled(voxels, header, case_id), affine, spacing_mm, header)


def encode_label(label: NDArray[np.uint8], header: Any) -> bytes:
    """A label map as a compressed NIfTI file with a scan's header: shape, matrices, codes, pixdim and units stay.

    Equal labels give equal bytes.
    """
    kept = header.copy()
    kept.set_data_dtype(np.uint8)
    kept.set_slope_inter(1, 0)
    kept["cal_min"], kept["cal_max"], kept["descrip"] = 0, 0, b""
    kept["magic"] = kept.single_magic
    kept["vox_offset"] = kept.single_vox_offset
    no_extension = b"\0" * (kept.single_vox_offset - kept.sizeof_hdr)
    voxels = label.reshape(kept.get_data_shape(), order="F").tobytes(order="F")
    return gzip.compress(kept.binaryblock + no_extension + voxels, compresslevel=6, mtime=0)


def new_header(shape: tuple[int, ...], affine: NDArray[np.float64]) -> Any:
    """A NIfTI-1 header for a scan of another format: qform and sform hold its affine, in millimetres."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner", strip_shears=True)
    return header


def _unpacked(packed: bytes, file: BinaryIO, case_id: str, path: Path) -> Iterator[bytes]:
    """What the members of a gzip file hold, a piece at a time, to its end; ``packed`` was read of it already.

    Bytes behind the last member are left alone, as gzip does.
    """
    try:
        while packed.startswith(_GZIP_MAGIC):
            member = zlib.decompressobj(wbits=31)
            while not member.eof:
                piece = member.decompress(packed, _PIECE)
                packed = member.unconsumed_tail or (b"" if member.eof else file.read(_PIECE))
                if piece:
                    yield piece
                elif not packed and not member.eof:
                    raise CaseError(case_id, f"{path.name} is cut off: its compressed data end early", _RESTORE)
            packed = member.unused_data + (file.read(_PIECE) if len(member.unused_data) < len(_GZIP_MAGIC) else b"")
    except zlib.error as error:
        found = f"{path.name} is damaged: its compressed data cannot be unpacked ({error})"
        raise CaseError(case_id, found, _RESTORE) from None


def _parse_header(start: bytes, case_id: str, path: Path) -> Any:
    not_nifti = CaseError(case_id, f"{path.name} is no NIfTI file", "give a NIfTI file, or name it by its format")
    if len(start) < 4:
        raise not_nifti
    sizes = {int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")}
    kind: Any = nib.Nifti1Header if 348 in sizes else nib.Nifti2Header if 540 in sizes else None
    if kind is None:
        raise not_nifti
    if len(start) < kind.sizeof_hdr:
        raise CaseError(case_id, f"{path.name} ends within its header ({len(start)} bytes)", _RESTORE)
    header = kind(start[: kind.sizeof_hdr], check=False)  # extensions, of any length, are not read
    if bytes(header["magic"]).rstrip(b"\0") != kind.single_magic.rstrip(b"\0"):
        found = f"{path.name} has the NIfTI magic {bytes(header['magic'])!r}, expected {kind.single_magic!r}"
        raise CaseError(case_id, found, "convert it to a single .nii.gz file")
    return header


def _checked_shape(header: Any, case_id: str) -> tuple[int, int, int]:
    count = int(header["dim"][0])
    sizes = [int(size) for size in header["dim"][1 : count + 1]] if 1 <= count <= 7 else []
    if not sizes or min(sizes) < 1:
        raise CaseError(case_id, f"its header gives the sizes {header['dim'].tolist()}", _RESTORE)
    if len(sizes) > 4 and max(sizes[4:]) > 1:
        raise CaseError(case_id, f"it holds vectors or colours, its shape is {tuple(sizes)}", "give one scalar volume")
    if len(sizes) > 3 and sizes[3] > 1:
        found = f"it is 4-D, with {sizes[3]} frames of {tuple(sizes[:3])}"
        raise CaseError(case_id, found, "pick one frame and save it as a 3-D scan")
    if len(sizes) > 3:
        warn_repaired(case_id, f"its shape {tuple(sizes)} is taken as {tuple(sizes[:3])}")
    first, second, third = [*sizes, 1, 1][:3]
    return first, second, third


def _checked_offset(header: Any, case_id: str) -> int:
    """Where the voxels begin; a damaged header can hold any float there."""
    stored = float(header["vox_offset"])
    if not 0 <= stored < 2**31:
        raise CaseError(case_id, f"its header puts the first voxel at byte {stored:g}", _RESTORE)
    return max(int(stored), header.sizeof_hdr)


def _checked_dtype(header: Any, case_id: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError):
        raise CaseError(
            case_id, f"its header names the unknown data type {int(header['datatype'])}", _RESTORE
        ) from None
    if dtype.kind not in "iuf":
        raise CaseError(case_id, f"its voxels are {dtype}, not real numbers", "give one scalar volume")
    return dtype


def _scaled(voxels: NDArray[Any], header: Any, case_id: str) -> NDArray[Any]:
    """Apply slope and intercept; none where the slope is 0 or NaN, as the standard says and all of ACDC has it."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope) or (slope == 1 and intercept == 0):
        return voxels
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise CaseError(case_id, f"its intensities are scaled by {slope} and shifted by {intercept}", _CONVERT)
    if voxels.dtype.kind == "f":
        return voxels * slope + intercept
    if slope == 1 and intercept.is_integer():
        shifted = int(voxels.min()) + int(intercept), int(voxels.max()) + int(intercept)
        if np.iinfo(np.int16).min <= shifted[0] and shifted[1] <= np.iinfo(np.int16).max:
            return converted(voxels, np.int16, lambda part: part.astype(np.int64) + int(intercept))
    exact = 2.0 ** (8 * voxels.dtype.itemsize) * abs(slope) + abs(intercept) < float(np.finfo(np.float32).max)
    return converted(voxels, np.float32 if exact else np.float64, lambda part: part * slope + intercept)


def _physical_grid(header: Any, case_id: str) -> tuple[NDArray[np.float64], tuple[float, float, float]]:
    """The affine in millimetres and the spacing: pixdim's, with which the affine must agree or be ACDC's."""
    spacing = _checked_pixdim(header, case_id)
    affine = _agreed_affine(header, case_id)
    scale = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or scale.min() == 0:
        raise CaseError(case_id, f"its affine {affine.tolist()} maps no volume", _CONVERT)
    spacing = np.where(np.arange(3) < int(header["dim"][0]), spacing, scale)  # a 2-D image has no third pixdim
    if not np.allclose(scale, spacing, rtol=_SCALE_TOLERANCE, atol=0):
        if int(header["qform_code"]) != 0 or not np.allclose(scale, 1, rtol=0, atol=_SCALE_TOLERANCE):
            found = f"its affine has the spacing {_shown(scale)} mm but pixdim says {_shown(spacing)} mm"
            raise CaseError(case_id, found, "correct the header")
        warn_of_acdc_spacing()
    directions, angle_deg = nearest_orthogonal(affine[:3, :3] / scale)
    if angle_deg > 1:
        raise CaseError(
            case_id, f"its axes are {angle_deg:.1f} degrees off a right angle", "resample it to a straight grid"
        )
    if angle_deg > 0.02:
        warn_repaired(case_id, f"its axes are {angle_deg:.2f} degrees off a right angle; taken as straight")
    factor = _millimetres_per_unit(header, case_id)
    physical = np.eye(4)
    physical[:3, :3] = (directions if angle_deg > 0.02 else affine[:3, :3] / scale) * spacing * factor
    physical[:3, 3] = affine[:3, 3] * factor
    first, second, third = (float(mm) * factor for mm in spacing)
    return physical, (first, second, third)


def _checked_pixdim(header: Any, case_id: str) -> NDArray[np.float64]:
    spacing = np.array(header["pixdim"][1:4], dtype=np.float64)
    spacing[int(header["dim"][0]) :] = 1.0
    if not (np.isfinite(spacing).all() and spacing.min() > 0):
        raise CaseError(case_id, f"its voxel spacing (pixdim) is {_shown(spacing)}", "correct the header")
    return spacing


def _agreed_affine(header: Any, case_id: str) -> NDArray[np.float64]:
    """The sform, else the qform; both must agree where both are coded."""
    sform = np.asarray(header.get_sform(), dtype=np.float64)
    coded_s, coded_q = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not coded_q:
        unit = np.allclose(np.linalg.norm(sform[:3, :3], axis=0), 1, rtol=0, atol=_SCALE_TOLERANCE)
        if coded_s or unit:
            return sform
        raise CaseError(case_id, "neither its sform nor its qform is coded, so its orientation is unknown", _CONVERT)
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise CaseError(case_id, f"its qform is no rotation ({error})", _CONVERT) from None
    if not coded_s:
        return qform
    sizes = (*header.get_data_shape(), 1, 1)[:3]
    if np.isfinite(sform).all() and np.linalg.det(sform) != 0 and displacement_voxels(qform, sform, sizes) > 0.5:
        raise CaseError(case_id, "its sform and qform place the scan differently", "correct the header")
    return sform


def _millimetres_per_unit(header: Any, case_id: str) -> float:
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:
        unit = "unknown"
    factor = _MILLIMETRES.get(unit, 1.0)
    if factor != 1.0:
        warn_repaired(case_id, f"its lengths are in the unit {unit}; converted to millimetres")
    return factor


def _shown(spacing: NDArray[np.float64]) -> str:
    return " x ".join(f"{mm:.4g}" for mm in spacing)
