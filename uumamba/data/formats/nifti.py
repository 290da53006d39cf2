"""NIfTI files: headers, scaling of voxels, encoding of label maps."""

import gzip
import math
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from uumamba.data.chunks import convert
from uumamba.data.formats.stored_volume import (
    RESTORE,
    Shape,
    StoredVolume,
    count_frames,
    drop_trailing_axes,
    find_frame_ms,
    make_header_error,
)
from uumamba.data.formats.voxel_stream import VoxelStream, make_read_error
from uumamba.data.grid import AffineMatrix, displacement_voxels, format_spacing
from uumamba.data.warn import warn_of_acdc_spacing, warn_repaired
from uumamba.runtime.errors import CaseError, require_case

GZIP_MAGIC = b"\x1f\x8b"
GZIP_BITS = zlib.MAX_WBITS | 16
NIFTI_SUFFIXES = (".nii", ".nii.gz")
_LONGEST_HEADER = 540
_HEADERS: dict[int, Any] = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_SCALE_TOLERANCE = 1e-3
_MILLIMETRES = {1: 1000.0, 3: 0.001}  # by the code of the unit: metre and micron
_MILLISECONDS = {0: None, 8: 1000.0, 16: 1.0, 24: 0.001}  # unknown, second, millisecond and microsecond; no others
_CONVERT = "convert the scan again from its source"
_CORRECT = "correct the header"


def count_nifti_frames(path: Path, *, case_id: str) -> int:
    """Return the number of frames in a header, from 1 on.

    Raises:
        CaseError: the file is unreadable.
    """
    header, _ = _read_header(path, case_id)
    return count_frames(_read_sizes(header))


def open_nifti(path: Path, *, case_id: str, channels: int = 1, frames: int = 1) -> StoredVolume:
    """Read the header of a single-file NIfTI-1 or NIfTI-2 volume.

    Slope and intercept are applied to the voxels; the suffix need not match the compression. Trailing axes of size 1
    are dropped, and a 2-D image gets a third axis of size 1. Integers stay integers if slope and intercept allow it.
    Several channels are on the last axis, as in the Decathlon; frames, of one channel, are on the fourth.

    Raises:
        CaseError: the file is unreadable, its header is invalid, or sform and qform disagree.
    """
    header, is_compressed = _read_header(path, case_id)
    if is_compressed != path.name.lower().endswith(".gz"):
        warn_repaired(case_id, f"{path.name} is {'' if is_compressed else 'not '}compressed, contrary to its name")
    volumes = max(channels, frames)
    shape, dtype = _checked_shape(header, case_id, volumes), _checked_dtype(header, case_id)
    stream = VoxelStream(path, "gzip" if is_compressed else "none", skip=_checked_offset(header, case_id))
    directions, spacing_mm, origin_mm = _physical_grid(header, shape, case_id)
    return StoredVolume(
        path=path,
        shape=shape,
        dtype=dtype,
        directions=directions,
        origin_mm=origin_mm,
        spacing_mm=spacing_mm,
        spacing_key="pixdim",
        voxels=partial(_read_voxels, stream, shape, volumes, dtype, header, case_id),
        is_complete=partial(stream.has_length, math.prod(shape) * volumes * dtype.itemsize),
        header=header if volumes == 1 else _drop_volumes(header, shape, keep_step=frames > 1),
        channels=volumes,
        frame_ms=_find_frame_ms(header),
    )


def _read_voxels(
    stream: VoxelStream, shape: Shape, channels: int, dtype: np.dtype[Any], header: Any, case_id: str
) -> NDArray[Any]:
    voxels = stream.read(math.prod(shape) * channels, dtype, case_id=case_id)
    if channels == 1:
        return _apply_scale(voxels.reshape(shape, order="F"), header, case_id)
    return _apply_scale(np.moveaxis(voxels.reshape((*shape, channels), order="F"), -1, 0), header, case_id)


def _drop_volumes(header: Any, shape: Shape, *, keep_step: bool) -> Any:
    """Copy a header without its axis of channels or frames.

    A frame keeps the step of time, so that the label map of all frames has it.
    """
    kept = header.copy()
    kept.set_data_shape(shape)
    if keep_step:
        kept["pixdim"][4] = header["pixdim"][4]
    return kept


def _find_frame_ms(header: Any) -> float | None:
    unit = int(header["xyzt_units"]) & 0x38
    return find_frame_ms(float(header["pixdim"][4]), _MILLISECONDS[unit]) if unit in _MILLISECONDS else None


def encode_label(label: NDArray[Any], header: Any) -> bytes:
    """Encode a label map as compressed NIfTI.

    Shape, matrices, codes, pixdim and units are those of ``header``. Equal labels give equal bytes.
    """
    kept = header.copy()
    kept.set_data_dtype(label.dtype)
    kept.set_slope_inter(1, 0)
    kept["cal_min"], kept["cal_max"], kept["descrip"] = 0, 0, b""
    kept["magic"] = kept.single_magic
    kept["vox_offset"] = kept.single_vox_offset
    head = kept.binaryblock.ljust(kept.single_vox_offset, b"\0")  # no extension
    stream = zlib.compressobj(level=6, wbits=GZIP_BITS)
    planes = (label[..., z].astype(kept.get_data_dtype()).tobytes(order="F") for z in range(label.shape[-1]))
    return b"".join([stream.compress(head), *map(stream.compress, planes), stream.flush()])


def new_header(shape: tuple[int, ...], affine: AffineMatrix) -> Any:
    """Make a NIfTI-1 header for a scan of another format.

    Qform and sform hold the affine, in millimetres.
    """
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner", strip_shears=True)
    return header


def _read_header(path: Path, case_id: str) -> tuple[Any, bool]:
    """Return the header, and whether the file is compressed."""
    try:
        with path.open("rb") as file:
            is_compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            file.seek(0)
            start = gzip.GzipFile(fileobj=file).read(_LONGEST_HEADER) if is_compressed else file.read(_LONGEST_HEADER)
    except (OSError, EOFError, zlib.error) as error:
        raise make_read_error(case_id, path, error) from None
    return _parse_header(start, case_id, path), is_compressed


def _parse_header(start: bytes, case_id: str, path: Path) -> Any:
    sizes = [int.from_bytes(start[:4], order) for order in ("little", "big")]
    kind = next((_HEADERS[size] for size in sizes if size in _HEADERS and size <= len(start)), None)
    if kind is None:
        raise make_header_error(
            case_id,
            path,
            f"no NIfTI header in its first {len(start)} bytes",
            expected="a NIfTI header",
            fix="restore the file from its source, or correct its suffix",
        )
    header = kind(start[: kind.sizeof_hdr], check=False)  # extensions, of any length, are not read
    magic, valid = (bytes(value).rstrip(b"\0") for value in (header["magic"], kind.single_magic))
    require_case(
        magic == valid,
        case_id,
        "file",
        got=f"the magic {magic!r}",
        expected=repr(valid),
        fix="convert the file to a single .nii.gz file",
    )
    return header


def _checked_offset(header: Any, case_id: str) -> int:
    stored = float(header["vox_offset"])
    require_case(
        0 <= stored < 2**31,
        case_id,
        "file",
        got=f"voxels from byte {stored:g} on",
        expected="an offset of at least 0",
        fix=RESTORE,
    )
    return max(int(stored), header.sizeof_hdr)


def _read_sizes(header: Any) -> tuple[int, ...]:
    count = int(header["dim"][0])
    return tuple(int(size) for size in header["dim"][1 : count + 1]) if 1 <= count <= 7 else ()


def _checked_shape(header: Any, case_id: str, channels: int) -> Shape:
    sizes = _read_sizes(header)
    require_case(
        min(sizes, default=0) > 0,
        case_id,
        "shape",
        got=header["dim"].tolist(),
        expected="1 to 7 axes of at least 1 voxel",
        fix=RESTORE,
    )
    if channels > 1:
        require_case(
            [size for size in sizes[3:] if size > 1] == [channels],
            case_id,
            "shape",
            got=sizes,
            expected=f"{channels} channels on the last axis",
            fix="give one 4-D file, or one 3-D file for each channel",
        )
        return drop_trailing_axes(sizes[:3], case_id)
    shape = drop_trailing_axes(sizes, case_id)
    if len(sizes) > 3:
        warn_repaired(case_id, f"its shape {sizes} is read as {shape}")
    return shape


def _checked_dtype(header: Any, case_id: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError):
        raise CaseError(
            case_id,
            "dtype",
            got=f"the unknown code {int(header['datatype'])}",
            expected="a NIfTI data type",
            fix=RESTORE,
        ) from None
    require_case(
        dtype.kind in "iuf",
        case_id,
        "dtype",
        got=dtype,
        expected="integers or real numbers",
        fix="give one scalar volume",
    )
    return dtype


def _apply_scale(voxels: NDArray[Any], header: Any, case_id: str) -> NDArray[Any]:
    """Apply slope and intercept.

    By the standard a slope of 0 or NaN means no scaling; all of ACDC has such a slope.
    """
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope) or (slope == 1 and intercept == 0):
        return voxels
    require_case(
        math.isfinite(slope * intercept) and slope > 0,
        case_id,
        "image",
        got=f"a slope of {slope} and an intercept of {intercept}",
        expected="a positive slope and a finite intercept",
        fix=_CONVERT,
    )
    if voxels.dtype.kind == "f":
        return voxels * slope + intercept
    if slope == 1 and intercept.is_integer():
        shifted = int(voxels.min()) + int(intercept), int(voxels.max()) + int(intercept)
        if np.iinfo(np.int16).min <= shifted[0] and shifted[1] <= np.iinfo(np.int16).max:
            return convert(voxels, np.int16, lambda part: part.astype(np.int64) + int(intercept))
    return convert(voxels, np.float32, lambda part: part * slope + intercept)


def _physical_grid(
    header: Any, shape: Shape, case_id: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Read directions, spacing and origin in millimetres.

    The spacing is pixdim. The affine must agree with it, or have unit scale and no qform as in ACDC.
    """
    dimensions = int(header["dim"][0])
    spacing = np.array(header["pixdim"][1:4], dtype=np.float64)
    affine = _agreed_affine(header, shape, case_id)
    scale = np.linalg.norm(affine[:3, :3], axis=0)
    require_case(
        np.isfinite(affine).all() and scale.min() > 0,
        case_id,
        "affine",
        got=affine.tolist(),
        expected="a finite matrix with independent axes",
        fix=_CONVERT,
    )
    spacing[dimensions:] = scale[dimensions:]  # a 2-D image has no third pixdim
    is_valid = bool(np.isfinite(spacing).all() and spacing.min() > 0)  # if not, open_scan refuses or replaces it
    if is_valid and not np.allclose(scale, spacing, rtol=_SCALE_TOLERANCE, atol=0):
        require_case(
            int(header["qform_code"]) == 0 and np.allclose(scale, 1, rtol=0, atol=_SCALE_TOLERANCE),
            case_id,
            "spacing_mm",
            got=format_spacing(spacing),
            expected=f"{format_spacing(scale)}, the affine's spacing",
            fix=_CORRECT,
        )
        warn_of_acdc_spacing()
    factor = _MILLIMETRES.get(int(header["xyzt_units"]) % 8, 1.0)
    if factor != 1.0:
        warn_repaired(case_id, f"its unit of length is {factor:g} mm; converted to millimetres")
    return affine[:3, :3] / scale, spacing * factor, affine[:3, 3] * factor


def _agreed_affine(header: Any, shape: Shape, case_id: str) -> AffineMatrix:
    """Read the sform, or the qform without an sform.

    Both must agree if both have a code.
    """
    sform = np.asarray(header.get_sform(), dtype=np.float64)
    has_sform, has_qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not has_qform:
        require_case(
            has_sform or np.allclose(np.linalg.norm(sform[:3, :3], axis=0), 1, rtol=0, atol=_SCALE_TOLERANCE),
            case_id,
            "affine",
            got="sform_code 0, qform_code 0",
            expected="an sform or qform with a code above 0",
            fix=_CONVERT,
        )
        return sform
    try:
        qform = np.asarray(header.get_qform(), dtype=np.float64)
    except (HeaderDataError, ValueError) as error:
        raise CaseError(
            case_id, "affine", got=f"a qform ({error})", expected="a valid quaternion", fix=_CONVERT
        ) from None
    if not has_sform:
        return qform
    if all(np.isfinite(form).all() and np.linalg.det(form) != 0 for form in (sform, qform)):
        apart = displacement_voxels(qform, sform, shape)
        require_case(
            apart <= 0.5,
            case_id,
            "affine",
            got=f"a distance of {apart:.1f} voxels between sform and qform",
            expected="a distance of at most half a voxel",
            fix=_CORRECT,
        )
    return sform
