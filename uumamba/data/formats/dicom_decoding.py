"""Decoding of the pixels of DICOM files."""

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.formats.dicom_headers import quiet_pydicom
from uumamba.data.formats.dicom_pixels import BIG, ITEM, JPEG, RLE, PixelFormat, StoredFrame, read_piece
from uumamba.data.formats.jpeg_process import JpegProcess
from uumamba.data.formats.stored_volume import make_header_error


def read_frames(
    frames: Sequence[StoredFrame], case_id: str, process: JpegProcess | None = None
) -> Iterator[NDArray[Any]]:
    """Read the stored values of frames.

    Each is an array of rows and columns. A decoder gets only an image of our own with the fragments of the frame, so
    that no other part of a header can mislead it. Bits above ``stored`` are ignored. The values of MONOCHROME1 are
    inverted, so that high values are bright, as in ITK.

    Args:
        frames: the frames.
        case_id: name in errors.
        process: decoder of JPEG; by default one that ends with the last frame.

    Raises:
        CaseError: a file cannot be read or decoded.
    """
    with ExitStack() as stack:
        decoder = process or stack.enter_context(JpegProcess())
        for frame in frames:
            try:
                yield _clean(_read_stored(frame, decoder), frame.format)
            except (OSError, ValueError, RuntimeError) as error:  # a RuntimeError is pydicom's
                reason = f"pixels that cannot be decoded ({type(error).__name__}): damaged"
                raise make_header_error(case_id, frame.path, reason, expected="a whole DICOM image") from None


def _read_stored(frame: StoredFrame, process: JpegProcess) -> NDArray[Any]:
    """Read a frame as it is stored.

    RLE is decoded by pydicom, since GDCM fails for odd sizes.
    """
    layout = frame.format
    shape = layout.rows, layout.columns
    with frame.path.open("rb") as file:
        pieces = [read_piece(file, piece) for piece in frame.pieces]
    if frame.syntax in JPEG:
        content = BytesIO()
        _wrap_fragments(pieces, frame).save_as(content, enforce_file_format=True)
        return process.decode(content.getvalue(), layout.dtype, shape)
    if frame.syntax == RLE:
        from pydicom.pixels.utils import pixel_array

        with quiet_pydicom():
            decoded = pixel_array(_wrap_fragments(pieces, frame), raw=True)
        return decoded.astype(layout.dtype, casting="no").reshape(shape)
    dtype = layout.dtype.newbyteorder(">" if frame.syntax == BIG else "<")
    return np.frombuffer(pieces[0], dtype).reshape(shape).astype(layout.dtype, copy=False)


def _wrap_fragments(fragments: Sequence[bytes], frame: StoredFrame) -> Any:
    """Make a DICOM image of nothing but a frame's fragments."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, SecondaryCaptureImageStorage

    layout, meta, image = frame.format, FileMetaDataset(), Dataset()
    meta.TransferSyntaxUID = UID(frame.syntax)
    image.SOPClassUID = meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    image.file_meta = meta
    image.Rows, image.Columns, image.SamplesPerPixel = layout.rows, layout.columns, 1
    image.PhotometricInterpretation = "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = layout.allocated, layout.stored, layout.stored - 1
    image.PixelRepresentation = int(layout.is_signed)
    items = (struct.pack("<LL", ITEM, len(each)) + each for each in (b"", *fragments))
    image.PixelData = b"".join(items)  # pydicom adds the end
    image["PixelData"].VR = "OB"
    image["PixelData"].is_undefined_length = True
    return image


def _clean(stored: NDArray[Any], layout: PixelFormat) -> NDArray[Any]:
    unused = layout.allocated - layout.stored
    values = (stored << unused) >> unused if unused else stored
    return sum(layout.limits) - values if layout.is_inverted else values
