"""NIfTI files: reading with header checks, encoding of label maps."""

import gzip
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from uumamba.data.chunks import convert
from uumamba.data.grid import MAX_VOLUME_BYTES, AffineMatrix, Scan, check_size, displacement_voxels
from uumamba.data.warn import warn_of_acdc_spacing, warn_repaired
from uumamba.runtime.errors import CaseError, require_case
from uumamba.types import SpacingMm

GZIP_MAGIC = b"\x1f\x8b"
_LONGEST_HEADER = 540
_HEADERS: dict[int, Any] = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_PIECE = 2**20  # bytes per read, so that the voxels are in memory only once
_SLACK_BYTES = 2**20  # padding that some writers add after the voxels
_SCALE_TOLERANCE = 1e-3
_MILLIMETRES = {1: 1000.0, 3: 0.001}  # by the code of the unit: metre and micron
_RESTORE = "restore the file from its source"
_CONVERT = "convert the scan again from its source"
_CORRECT = "correct the header"


def is_nifti_name(path: Path) -> bool:
    """Return whether a file has the suffix of a NIfTI file."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def read_nifti(path: Path, *, case_id: str, max_bytes: int = MAX_VOLUME_BYTES) -> Scan:
    """Read a single-file NIfTI-1 or NIfTI-2 volume.

    Slope and intercept are applied; the suffix need not match the compression. Trailing axes of size 1 are dropped, and
    a 2-D image gets a third axis of size 1. Integers stay integers if slope and intercept allow it.

    Raises:
        CaseError: the file is unreadable, or its header or data are invalid.
    """
    try:
        with path.open("rb") as file:
            return _read_stream(file, path, case_id, max_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise CaseError(
            case_id,
            "file",
            got=f"{path.name} ({getattr(error, 'strerror', None) or error})",
            expected="a readable NIfTI file",
            fix=_RESTORE,
        ) from None


def _read_stream(file: BinaryIO, path: Path, case_id: str, max_bytes: int) -> Scan:
    is_compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
    file.seek(0)
    start = gzip.GzipFile(fileobj=file).read(_LONGEST_HEADER) if is_compressed else file.read(_LONGEST_HEADER)
    header = _parse_header(start, case_id, path)
    if is_compressed != path.name.lower().endswith(".gz"):
        warn_repaired(case_id, f"{path.name} is {'' if is_compressed else 'not '}compressed, contrary to its name")
    shape, dtype = _checked_shape(header, case_id), _checked_dtype(header, case_id)
    stored = float(header["vox_offset"])
    require_case(
        0 <= stored < 2**31,
        case_id,
        "file",
        got=f"voxels from byte {stored:g} on",
        expected="an offset of at least 0",
        fix=_RESTORE,
    )
    offset = max(int(stored), header.sizeof_hdr)
    end = offset + math.prod(shape) * dtype.itemsize
    check_size(end, case_id, max_bytes)
    voxels = np.empty(math.prod(shape), dtype)
    content, position = voxels.data.cast("B"), -offset
    file.seek(0)
    for piece in _decompress(file) if is_compressed else iter(lambda: file.read(_PIECE), b""):
        part = piece[max(-position, 0) : max(len(content) - position, 0)]
        content[max(position, 0) :][: len(part)] = part
        position += len(piece)
        if position > len(content) + _SLACK_BYTES:
            break
    require_case(
        0 <= position - len(content) <= (_SLACK_BYTES if is_compressed else math.inf),
        case_id,
        "file",
        got=f"{path.name} with {offset + position} bytes",
        expected=f"{end} bytes",
        fix=_RESTORE,
    )
    affine, spacing_mm = _physical_grid(header, case_id)
    return Scan(_apply_scale(voxels.reshape(shape, order="F"), header, case_id), affine, spacing_mm, header, path)


def _decompress(file: BinaryIO) -> Iterator[bytes]:
    """Decompress a gzip file in pieces, and check its checksums.

    GzipFile of Python 3.11 is slower, because it reads only 8 KiB at a time.
    """
    stored = file.read(_PIECE)
    while stored:
        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        while not member.eof:
            if not stored:
                raise EOFError("the compressed data is cut off")
            yield member.decompress(stored, _PIECE)
            stored = member.unconsumed_tail or member.unused_data or file.read(_PIECE)
        stored = stored.lstrip(b"\0")  # padding between members


def encode_label(label: NDArray[np.uint8], header: Any) -> bytes:
    """Encode a label map as compressed NIfTI.

    Shape, matrices, codes, pixdim and units are those of ``header``. Equal labels give equal bytes.
    """
    kept = header.copy()
    kept.set_data_dtype(np.uint8)
    kept.set_slope_inter(1, 0)
    kept["cal_min"], kept["cal_max"], kept["descrip"] = 0, 0, b""
    kept["magic"] = kept.single_magic
    kept["vox_offset"] = kept.single_vox_offset
    head = kept.binaryblock.ljust(kept.single_vox_offset, b"\0")  # no extension
    return gzip.compress(
        head + label.reshape(kept.get_data_shape(), order="F").tobytes(order="F"), compresslevel=6, mtime=0
    )


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


def _parse_header(start: bytes, case_id: str, path: Path) -> Any:
    sizes = [int.from_bytes(start[:4], order) for order in ("little", "big")]
    kind = next((_HEADERS[size] for size in sizes if size in _HEADERS and size <= len(start)), None)
    if kind is None:
        raise CaseError(
            case_id,
            "file",
            got=f"{path.name} without a NIfTI header in its first {len(start)} bytes",
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


def _checked_shape(header: Any, case_id: str) -> tuple[int, ...]:
    count = int(header["dim"][0])
    sizes = tuple(int(size) for size in header["dim"][1 : count + 1]) if 1 <= count <= 7 else ()
    require_case(
        min(sizes, default=0) > 0,
        case_id,
        "shape",
        got=header["dim"].tolist(),
        expected="1 to 7 axes of at least 1 voxel",
        fix=_RESTORE,
    )
    require_case(
        max(sizes[3:], default=1) == 1,
        case_id,
        "shape",
        got=sizes,
        expected="one 3-D volume of scalars",
        fix="save one frame or channel as a 3-D scan",
    )
    if len(sizes) > 3:
        warn_repaired(case_id, f"its shape {sizes} is read as {sizes[:3]}")
    return (*sizes, 1, 1)[:3]


def _checked_dtype(header: Any, case_id: str) -> np.dtype[Any]:
    try:
        dtype = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError):
        raise CaseError(
            case_id,
            "dtype",
            got=f"the unknown code {int(header['datatype'])}",
            expected="a NIfTI data type",
            fix=_RESTORE,
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
        math.isfinite(slope * intercept),
        case_id,
        "image",
        got=f"a slope of {slope} and an intercept of {intercept}",
        expected="a finite slope and intercept",
        fix=_CONVERT,
    )
    if voxels.dtype.kind == "f":
        return voxels * slope + intercept
    if slope == 1 and intercept.is_integer():
        shifted = int(voxels.min()) + int(intercept), int(voxels.max()) + int(intercept)
        if np.iinfo(np.int16).min <= shifted[0] and shifted[1] <= np.iinfo(np.int16).max:
            return convert(voxels, np.int16, lambda part: part.astype(np.int64) + int(intercept))
    return convert(voxels, np.float32, lambda part: part * slope + intercept)


def _physical_grid(header: Any, case_id: str) -> tuple[AffineMatrix, SpacingMm]:
    """Read affine and spacing in millimetres.

    The spacing is pixdim. The affine must agree with pixdim, or have unit scale and no qform as in ACDC.
    """
    dimensions = int(header["dim"][0])
    spacing = np.array(header["pixdim"][1:4], dtype=np.float64)
    spacing[dimensions:] = 1.0
    require_case(
        np.isfinite(spacing).all() and spacing.min() > 0,
        case_id,
        "spacing_mm",
        got=_format_spacing(spacing),
        expected="positive numbers",
        fix=_CORRECT,
    )
    affine = _agreed_affine(header, case_id)
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
    if not np.allclose(scale, spacing, rtol=_SCALE_TOLERANCE, atol=0):
        require_case(
            int(header["qform_code"]) == 0 and np.allclose(scale, 1, rtol=0, atol=_SCALE_TOLERANCE),
            case_id,
            "spacing_mm",
            got=_format_spacing(spacing),
            expected=f"{_format_spacing(scale)}, the affine's spacing",
            fix=_CORRECT,
        )
        warn_of_acdc_spacing()
    directions, angle_deg = _nearest_orthogonal(affine[:3, :3] / scale)
    require_case(
        angle_deg <= 1,
        case_id,
        "affine",
        got=f"a deviation of {angle_deg:.1f} degrees from right angles between the axes",
        expected="a deviation of at most 1 degree",
        fix="resample the scan to an orthogonal grid",
    )
    if angle_deg > 0.02:
        warn_repaired(
            case_id, f"its axes are {angle_deg:.2f} degrees off a right angle; the nearest orthogonal axes are used"
        )
    factor = _MILLIMETRES.get(int(header["xyzt_units"]) % 8, 1.0)
    if factor != 1.0:
        warn_repaired(case_id, f"its unit of length is {factor:g} mm; converted to millimetres")
    physical = np.eye(4)
    physical[:3, :3] = (directions if angle_deg > 0.02 else affine[:3, :3] / scale) * spacing * factor
    physical[:3, 3] = affine[:3, 3] * factor
    return physical, tuple(float(mm) * factor for mm in spacing)


def _agreed_affine(header: Any, case_id: str) -> AffineMatrix:
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
    if np.isfinite(sform).all() and np.linalg.det(sform) != 0:
        apart = displacement_voxels(qform, sform, (*header.get_data_shape(), 1, 1)[:3])
        require_case(
            apart <= 0.5,
            case_id,
            "affine",
            got=f"a distance of {apart:.1f} voxels between sform and qform",
            expected="a distance of at most half a voxel",
            fix=_CORRECT,
        )
    return sform


def _nearest_orthogonal(directions: AffineMatrix) -> tuple[AffineMatrix, float]:
    """Find the orthogonal matrix nearest to three unit columns.

    The second value is the columns' largest deviation from a right angle in degrees.
    """
    cosines = directions.T @ directions
    largest = float(np.abs(cosines[np.triu_indices(3, k=1)]).max())
    left, _, right = np.linalg.svd(directions)
    return left @ right, float(np.degrees(np.arcsin(min(largest, 1.0))))


def _format_spacing(spacing: NDArray[Any]) -> str:
    return " x ".join(f"{mm:.4g}" for mm in spacing)
