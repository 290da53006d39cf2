"""Reading and writing of scans and label maps on their native grids."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.case import Case
from uumamba.data.channels import ONE_CHANNEL, check_channel_files, stack_channels
from uumamba.data.chunks import chunks, convert, find_distinct_values
from uumamba.data.formats.dicom_studies import DicomSeries
from uumamba.data.formats.itk_labels import describe_segments, encode_metaimage, encode_nrrd
from uumamba.data.formats.nifti import encode_label, new_header
from uumamba.data.formats.png import PNG_SUFFIXES, encode_png
from uumamba.data.grid import MAX_VOLUME_BYTES, Scan, check_same_grid
from uumamba.data.label_scheme import IGNORED, MAX_LABEL_VALUE
from uumamba.data.open_scan import open_scan
from uumamba.data.warn import AcdcSpacingWarning, ScanWarning, warn_repaired
from uumamba.runtime.errors import CaseError, require, require_case
from uumamba.runtime.files import whole_file
from uumamba.types import LabelMap

__all__ = [
    "MAX_VOLUME_BYTES",
    "AcdcSpacingWarning",
    "Scan",
    "ScanWarning",
    "check_same_grid",
    "read_case",
    "read_image",
    "read_label",
    "write_label",
]

LABEL_SUFFIXES = (".nii.gz", ".mha", ".nrrd", ".seg.nrrd")
"""Formats of label maps with a grid."""
INTEGER_TOLERANCE = 1e-3
"""Largest distance of a label value from an integer."""
_MOST_BAD_VOXELS = 0.01


def read_image(
    path: Path | str | DicomSeries | Sequence[Path | str],
    *,
    channels: Sequence[str] = ONE_CHANNEL,
    case_id: str | None = None,
    max_bytes: int = MAX_VOLUME_BYTES,
    keep_integers: bool = False,
    assume_spacing_mm: Sequence[float] | None = None,
) -> Scan:
    """Read one 3-D scan, or the channels of one image.

    Formats and rules are those of :func:`uumamba.data.open_scan.open_scan`. If affine and pixdim of a NIfTI header
    disagree, the spacing is pixdim for an affine with columns of unit length and qform_code 0 (all of ACDC), with one
    :class:`AcdcSpacingWarning` per process; any other disagreement is an error. NaN or infinite voxels outside the body
    become the smallest value; in the body, or in more than 1 % of all voxels, they are an error. Several channels are
    ``(C, *S)`` on the grid of the first; see :func:`uumamba.data.channels.stack_channels`.

    Args:
        path: the file, folder or chosen DICOM series; of several channels one file for each, or one 4-D NIfTI file
            with the channels last.
        channels: name of each channel that the image must have.
        case_id: name in errors and warnings; by default the file's name.
        max_bytes: largest image in memory.
        keep_integers: keep the dtype of stored integers, which for CT is half as large as float32.
        assume_spacing_mm: spacing of the stored axes for a scan without a valid one.

    Raises:
        CaseError: the scan is missing, damaged or ambiguous, or has other channels.
    """
    files = _list_files(path)
    case_id = case_id or files[0].name
    check_channel_files(files, channels, case_id=case_id)
    scans = _read_files(
        files,
        channels=len(channels) // len(files),
        case_id=case_id,
        keep_integers=keep_integers,
        max_bytes=max_bytes // len(files),
        assume_spacing_mm=assume_spacing_mm,
    )
    return next(scans) if len(channels) == 1 else stack_channels(scans, channels, case_id=case_id)


def _list_files(path: Path | str | DicomSeries | Sequence[Path | str]) -> Sequence[Path | DicomSeries]:
    if isinstance(path, DicomSeries):
        return [path]
    return [Path(path)] if isinstance(path, Path | str) else [Path(each) for each in path]


def _read_files(
    files: Sequence[Path | DicomSeries], *, channels: int, case_id: str, keep_integers: bool, **options: Any
) -> Iterator[Scan]:
    """Read files one after the other, each with ``channels``."""
    for path in files:
        opened = open_scan(path, case_id=case_id, channels=channels, **options)
        require_case(
            not opened.stored.has_palette,
            case_id,
            "image",
            got="indices of a palette",
            expected="intensities",
            fix="save the image as grey or RGB",
        )
        scan = opened.read()
        for array in scan.array if channels > 1 else [scan.array]:
            is_kept = keep_integers and array.dtype.kind in "iu"
            yield replace(scan, array=array if is_kept else convert_image(array, case_id))


def read_label(
    path: Path | str,
    *,
    structures: Mapping[str, int],
    case_id: str | None = None,
    max_bytes: int = MAX_VOLUME_BYTES,
    ignore_value: int | None = None,
) -> Scan:
    """Read a label map.

    It is uint8, or uint16 if a value is above 255. It may have no foreground.

    Args:
        path: as for :func:`read_image`.
        structures: valid values in addition to 0, at most 65535.
        case_id: name in errors; by default the file's name.
        max_bytes: largest volume in memory.
        ignore_value: value of ignored voxels, valid as well; None if there are none.

    Raises:
        CaseError: as for an image; or a value is not within 0.001 of an integer, or not in ``structures``.
    """
    opened = open_scan(path, case_id=case_id, max_bytes=max_bytes)
    scan = opened.read()
    return replace(scan, array=_convert_label(scan.array, structures, opened.case_id, ignore_value=ignore_value))


def read_case(
    case: Case,
    *,
    structures: Mapping[str, int],
    channels: Sequence[str] = ONE_CHANNEL,
    ignore_value: int | None = None,
) -> tuple[Scan, Scan]:
    """Read image and label of a case; integer images stay integer.

    Raises:
        CaseError: the case has no label, a file cannot be read, or the grids differ.
    """
    if case.label is None:
        raise CaseError(
            case.case_id,
            "label",
            got=None,
            expected="the path of a label",
            fix="add the label, or remove the case from the training cases",
        )
    image = read_image(case.image, channels=channels, case_id=case.case_id, keep_integers=True)
    label = read_label(case.label, structures=structures, case_id=case.case_id, ignore_value=ignore_value)
    check_same_grid(image, label, case_id=case.case_id)
    return image, label


def write_label(
    path: Path | str,
    label: LabelMap,
    like: Scan,
    *,
    structures: Mapping[str, int] | None = None,
    colours: Mapping[str, str] | None = None,
) -> None:
    """Write a label map on the grid of its scan, atomically.

    The suffix of the path is the format: ``.nii.gz``, ``.mha``, ``.nrrd``, ``.seg.nrrd`` (a segmentation of 3D Slicer)
    or ``.png``. In a NIfTI file, shape, matrices, codes, pixdim and units are those of a NIfTI scan; for a scan of
    another format, qform and sform of a new header hold the scan's affine. The other formats hold the scan's affine. A
    PNG holds one slice without a grid: grey values of 8 bits, or of 16 bits if a structure's value is above 255.

    Args:
        path: the file.
        label: classes, as of :func:`uumamba.data.label_scheme.number_classes`.
        like: the scan.
        structures: label value of each structure, written in place of its class; by default the classes are written.
        colours: colour of each structure, necessary for ``.seg.nrrd``.

    Raises:
        UsageError: the label is not uint8 of the scan's shape, the path has another suffix, or a PNG would hold
            several slices.
    """
    path = Path(path)
    name, is_flat = path.name.lower(), like.shape[2] == 1
    suffixes = (*LABEL_SUFFIXES, *PNG_SUFFIXES) if is_flat else LABEL_SUFFIXES
    require(
        name.endswith(suffixes),
        "path",
        got=str(path),
        expected=f"a file name that ends in {' or '.join(suffixes)}",
    )
    require(
        label.dtype == np.uint8 and label.shape == like.shape,
        "label",
        got=f"{label.dtype} of shape {label.shape}",
        expected=f"uint8 of shape {like.shape}",
    )
    values = decode_classes(label, structures or {})
    encoded = _encode_label(name, values, like, structures or {}, colours or {})
    with whole_file(path) as unfinished:
        unfinished.write_bytes(encoded)


def _encode_label(
    name: str, label: NDArray[Any], like: Scan, structures: Mapping[str, int], colours: Mapping[str, str]
) -> bytes:
    if name.endswith(PNG_SUFFIXES):
        return encode_png(label)
    if name.endswith(".mha"):
        return encode_metaimage(label, like.affine)
    if name.endswith(".seg.nrrd"):
        return encode_nrrd(label, like.affine, notes=describe_segments(structures, colours, label.shape))
    return encode_nrrd(label, like.affine) if name.endswith(".nrrd") else encode_label(label, find_header(like))


def find_header(scan: Scan) -> Any:
    """Return a scan's NIfTI header; one with its affine for another format."""
    return scan.header if scan.header is not None else new_header(scan.shape, scan.affine)


def encode_classes(label: NDArray[Any], structures: Mapping[str, int], *, ignore_value: int | None = None) -> LabelMap:
    """Replace each structure's label value by its class.

    Ignored voxels get the class 255, :data:`uumamba.data.label_scheme.IGNORED`.

    Example:
        >>> encode_classes(np.array([0, 500, 3], dtype=np.uint16), {"LV": 500, "RV": 3}).tolist()
        [0, 2, 1]
        >>> encode_classes(np.array([0, 1, 9], dtype=np.uint8), {"LV": 1}, ignore_value=9).tolist()
        [0, 1, 255]
    """
    values = [0, *sorted(structures.values())]
    if values == list(range(len(values))) and ignore_value in (None, IGNORED):
        return label
    if ignore_value is None:
        return convert(label, np.uint8, lambda part: np.searchsorted(values, part))
    # An ignored voxel may be found beyond the last structure, so it is marked afterwards.
    return convert(label, np.uint8, lambda part: np.where(part == ignore_value, IGNORED, np.searchsorted(values, part)))


def decode_classes(label: LabelMap, structures: Mapping[str, int], *, ignore_value: int | None = None) -> NDArray[Any]:
    """Replace each structure's class by its label value.

    Without structures the label is unchanged. It holds no ignored voxels unless ``ignore_value`` is given.

    Example:
        >>> decode_classes(np.array([0, 2, 1], dtype=np.uint8), {"LV": 500, "RV": 3}).tolist()
        [0, 500, 3]
        >>> decode_classes(np.array([0, 1, 255], dtype=np.uint8), {"LV": 1}, ignore_value=9).tolist()
        [0, 1, 9]
    """
    listed = [0, *sorted(structures.values())]
    if ignore_value is not None:
        listed += [0] * (IGNORED - len(listed)) + [ignore_value]
    values = np.array(listed, dtype=smallest_dtype(listed))
    if not structures or listed == list(range(len(listed))):
        return label
    return convert(label, values.dtype, lambda part: values[part])


def smallest_dtype(values: Collection[int]) -> np.dtype[Any]:
    """Return the smallest dtype of a label map with these values."""
    return np.dtype(np.uint8 if max(values, default=0) < 256 else np.uint16)


def convert_image(voxels: NDArray[Any], case_id: str) -> NDArray[np.float32]:
    """Convert voxels to float32, with the rules of :func:`read_image`.

    Raises:
        CaseError: too many voxels are NaN or infinite, or some are in the body.
    """
    largest = float(np.finfo(np.float32).max)
    if voxels.dtype.kind == "f":
        voxels = _without_nonfinite(voxels, case_id)
        if voxels.dtype.itemsize > 4 and np.abs(voxels).max() > largest:
            warn_repaired(case_id, f"its values up to {np.abs(voxels).max():.0e} are clipped to float32")
            voxels = np.clip(voxels, -largest, largest)
    return voxels.astype(np.float32, copy=False)


def _without_nonfinite(voxels: NDArray[Any], case_id: str) -> NDArray[Any]:
    if all(np.isfinite(part).all() for part in chunks(voxels)):
        return voxels
    finite = np.isfinite(voxels)
    share = 1 - finite.mean()
    require_case(
        share <= _MOST_BAD_VOXELS and not _touches_body(voxels, finite),
        case_id,
        "image",
        got=f"{share:.2%} NaN or infinite voxels",
        expected=f"at most {_MOST_BAD_VOXELS:.0%} of such voxels, and none in the body",
        fix="repair or exclude the scan",
    )
    lowest = voxels[finite].min()
    warn_repaired(case_id, f"{(~finite).sum()} NaN or infinite voxels outside the body are set to {lowest:g}")
    return np.where(finite, voxels, lowest)


def _touches_body(voxels: NDArray[Any], finite: NDArray[np.bool_]) -> bool:
    """Return whether NaN or infinite voxels touch the body.

    In the box of 5 x 5 x 5 voxels around such a voxel, at least half of the finite voxels are brighter than the mean,
    or no voxel is finite.
    """
    from scipy import ndimage  # here, because the import takes a tenth of a second and is rarely needed

    body = finite & (np.where(finite, voxels, 0) > voxels[finite].mean(dtype=np.float64))
    bright, known = (ndimage.uniform_filter(mask.astype(np.float32), size=5) for mask in (body, finite))
    return bool((bright >= 0.5 * known)[~finite].any())


def _convert_label(
    voxels: NDArray[Any], structures: Mapping[str, int], case_id: str, *, ignore_value: int | None
) -> LabelMap:
    require(
        all(0 < value <= MAX_LABEL_VALUE for value in structures.values()),
        "structures",
        got=dict(structures),
        expected=f"values from 1 to {MAX_LABEL_VALUE}",
    )
    values = find_distinct_values(voxels)
    rounded = np.round(values)
    with np.errstate(invalid="ignore"):  # infinity minus infinity
        distances = np.where(np.isfinite(values), np.abs(values - rounded), np.inf)
    require_case(
        distances.max() <= INTEGER_TOLERANCE,
        case_id,
        "label",
        got=values[int(np.argmax(distances))].item(),
        expected="integer values",
        fix="correct the label",
    )
    names = {0: "background"} | {value: name for name, value in structures.items()}
    if ignore_value is not None:
        names[ignore_value] = "ignored"
    unknown = sorted({int(value) for value in rounded} - names.keys())
    if unknown:
        raise CaseError(
            case_id,
            "label",
            got=", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else ""),
            expected=", ".join(f"{value} {name}" for value, name in names.items()),
            fix="correct the label or the list of structures (or exchange image and label)",
        )
    dtype = smallest_dtype(names)
    return voxels if voxels.dtype == dtype else convert(voxels, dtype, np.round)
