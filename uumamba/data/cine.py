"""Cines: scans of one grid at several times of a heart cycle."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.formats.itk_labels import encode_metaimage, encode_nrrd
from uumamba.data.formats.nifti import encode_label
from uumamba.data.grid import MAX_VOLUME_BYTES
from uumamba.data.open_scan import count_stored_frames, open_scan
from uumamba.data.scan import Scan, convert_image, decode_classes, find_header, read_image
from uumamba.runtime.errors import CaseError, require
from uumamba.runtime.files import whole_file
from uumamba.types import LabelMap


@dataclass(frozen=True)
class Cine:
    """Frames of a cine.

    Attributes:
        frames: 3-D scans on one grid, in the order of time.
        times_ms: time of each frame after the trigger (the R wave), or after the first frame; None if unknown.
    """

    frames: tuple[Scan, ...]
    times_ms: tuple[float, ...] | None = None


def is_cine(path: Path | str) -> bool:
    """Return whether a file holds several frames, from its header.

    A file that cannot be read is none, so that its reader names the fault.
    """
    try:
        return count_stored_frames(path) > 1
    except CaseError:
        return False


def read_cine(
    path: Path | str,
    *,
    case_id: str | None = None,
    assume_spacing_mm: Sequence[float] | None = None,
    max_bytes: int = MAX_VOLUME_BYTES,
) -> Cine:
    """Read all frames of a 4-D NIfTI, MetaImage or NRRD file.

    The rules of :func:`uumamba.data.scan.read_image` hold for each frame, and its limit of memory for all of them. The
    fourth axis is time; in NRRD it is the axis without a direction. Times are known if the header's step is from 5 to
    200 ms. A still scan is a cine of one frame.

    Args:
        path: the file.
        case_id: name in errors and warnings; by default the file's name.
        assume_spacing_mm: spacing of the stored axes for a file without a valid one.
        max_bytes: largest cine in memory.

    Raises:
        CaseError: as of :func:`uumamba.data.scan.read_image`; the error of a frame names it, counted from 1.

    Example:
        >>> import tempfile, nibabel
        >>> path = Path(tempfile.mkdtemp(), "heart_4d.nii.gz")
        >>> image = nibabel.Nifti1Image(np.ones((9, 8, 5, 12), np.int16), np.diag([1.5, 1.5, 8.0, 1.0]))
        >>> image.header["pixdim"][4] = 40.0
        >>> nibabel.save(image, path)
        >>> cine = read_cine(path)
        >>> len(cine.frames), cine.frames[0].shape, cine.times_ms[:3]
        (12, (9, 8, 5), (0.0, 40.0, 80.0))
    """
    path = Path(path)
    case_id = case_id or path.name
    count = count_stored_frames(path, case_id=case_id)
    if count == 1:
        return Cine((read_image(path, case_id=case_id, assume_spacing_mm=assume_spacing_mm, max_bytes=max_bytes),))
    opened = open_scan(path, case_id=case_id, frames=count, assume_spacing_mm=assume_spacing_mm, max_bytes=max_bytes)
    whole = opened.read()
    frames = []
    for number, voxels in enumerate(whole.array, start=1):
        with name_frame(number, count):
            frames.append(replace(whole, array=convert_image(voxels, case_id)))
    step_ms = opened.stored.frame_ms
    times_ms = None if step_ms is None else tuple(step_ms * index for index in range(count))
    return Cine(tuple(frames), times_ms)


@contextmanager
def name_frame(number: int, count: int) -> Iterator[None]:
    """Add a frame's number to the errors of a block.

    Raises:
        CaseError: in place of one without the number; a still scan's is unchanged.
    """
    try:
        yield
    except CaseError as error:
        if count == 1:
            raise
        key = f"frame {number} of {count}: {error.key}"
        raise CaseError(error.case_id, key, got=error.got, expected=error.expected, fix=error.fix) from None


def write_cine_label(
    path: Path | str, labels: Sequence[LabelMap], like: Cine, *, structures: Mapping[str, int] | None = None
) -> None:
    """Write the label maps of all frames as one 4-D file, atomically.

    Matrices, codes, units, pixdim and its step of time are those of the cine, as for
    :func:`uumamba.data.scan.write_label`. For a cine of another format, the step is in milliseconds if it is known.

    Raises:
        UsageError: the labels are not uint8 of the frames' shape, one for each frame, or the path does not end in
            ``.nii.gz``, ``.mha`` or ``.nrrd``.
    """
    path = Path(path)
    name, shape = path.name.lower(), like.frames[0].shape
    require(
        len(labels) == len(like.frames) and all(each.dtype == np.uint8 and each.shape == shape for each in labels),
        "labels",
        got=f"{len(labels)} of shape {labels[0].shape if labels else ()}",
        expected=f"{len(like.frames)} uint8 label maps of shape {shape}",
    )
    is_known = name.endswith((".nii.gz", ".mha", ".nrrd")) and not name.endswith(".seg.nrrd")
    require(is_known, "path", got=path.name, expected="nii.gz, mha or nrrd for the label maps of a cine")
    values = np.stack([decode_classes(each, structures or {}) for each in labels], axis=-1)
    with whole_file(path) as unfinished:
        unfinished.write_bytes(_encode_cine(name, values, like))


def _encode_cine(name: str, values: NDArray[Any], like: Cine) -> bytes:
    step_ms = 1.0 if like.times_ms is None else float(np.diff(like.times_ms).mean())
    if name.endswith(".mha"):
        return encode_metaimage(values, like.frames[0].affine, step_ms=step_ms)
    if name.endswith(".nrrd"):
        return encode_nrrd(values, like.frames[0].affine)
    header = find_header(like.frames[0]).copy()
    step, is_new = header["pixdim"][4].copy(), like.frames[0].header is None
    header.set_data_shape(values.shape)
    header["pixdim"][4] = step
    if is_new and like.times_ms is not None:
        header["pixdim"][4] = step_ms
        header.set_xyzt_units("mm", "msec")
    return encode_label(values, header)
