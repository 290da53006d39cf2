"""DICOM files of a few hundred bytes, written by pydicom."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

ROWS, COLUMNS, STEP_MM = 33, 40, 5.0
OBLIQUE = (0.9362933635841992, -0.27509584731824366, 0.21835066314633444)
OBLIQUE_COLUMN = (0.28962947762551555, 0.9564250858492325, -0.03695701352462507)


def make_slices(count: int = 4, *, dtype: Any = np.uint16, bits: int = 12, **tags: Any) -> list[Dataset]:
    """Make the slices of an axial CT; a tag may also be a function of the slice's index."""
    values = np.random.default_rng(0)
    return [_make_slice(index, count, dtype, bits, values, tags) for index in range(count)]


def _make_slice(
    index: int, count: int, dtype: Any, bits: int, values: np.random.Generator, tags: dict[str, Any]
) -> Dataset:
    image, meta = Dataset(), FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    image.file_meta, image.SOPClassUID = meta, CTImageStorage
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid(entropy_srcs=[str(index)])
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = "1.2", "1.2.3", "1.2.4"
    image.PatientName, image.PatientID, image.Modality = "Mueller^Anna", "4711", "CT"
    image.SeriesNumber, image.SeriesDescription, image.InstanceNumber = 3, "heart", index + 1
    image.Rows, image.Columns, image.SamplesPerPixel = ROWS, COLUMNS, 1
    image.PhotometricInterpretation, image.PixelSpacing = "MONOCHROME2", [0.75, 0.5]
    image.BitsAllocated, image.BitsStored, image.HighBit = np.dtype(dtype).itemsize * 8, bits, bits - 1
    image.PixelRepresentation = int(np.dtype(dtype).kind == "i")
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    image.ImageOrientationPatient, image.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-7.5, 12.25, STEP_MM * index]
    low = -(2 ** (bits - 1)) if np.dtype(dtype).kind == "i" else 0
    image.PixelData = values.integers(low, low + 2**bits, (ROWS, COLUMNS)).astype(dtype).tobytes()
    for keyword, value in tags.items():
        setattr(image, keyword, value(index) if callable(value) else value)
    return image


def write_slices(folder: Path, slices: Sequence[Dataset], *, name: str = "slice{}.dcm") -> Path:
    """Write each slice to a file."""
    folder.mkdir(exist_ok=True)
    for index, image in enumerate(slices):
        image.save_as(folder / name.format(index), enforce_file_format=True)
    return folder


def place_along(step: Sequence[float], *, start: Sequence[float] = (-7.5, 12.25, -90.0)) -> Any:
    """Return the positions of slices on a straight line, as a function of the index."""
    return lambda index: (np.array(start) + index * np.array(step)).tolist()


def compress(image: Dataset, codec: str, scratch: Path) -> Dataset:
    """Compress the pixels without loss, JPEG by SimpleITK."""
    if codec == "RLE":
        image.compress(RLELossless, generate_instance_uid=False)
        return image
    dtype = np.dtype(f"{'i' if image.PixelRepresentation else 'u'}{image.BitsAllocated // 8}")
    writer = SimpleITK.ImageFileWriter()
    writer.SetUseCompression(True)
    writer.SetCompressor(codec)
    writer.SetFileName(str(scratch))
    writer.Execute(SimpleITK.GetImageFromArray(np.frombuffer(image.PixelData, dtype).reshape(1, ROWS, COLUMNS)))
    compressed = dcmread(scratch)
    image.file_meta.TransferSyntaxUID = compressed.file_meta.TransferSyntaxUID
    image.PixelData = compressed.PixelData
    image["PixelData"].VR, image["PixelData"].is_undefined_length = "OB", True
    return image


def make_enhanced(slices: Sequence[Dataset]) -> Dataset:
    """Join slices to one enhanced multi-frame image."""
    image, shared = deepcopy(slices[0]), Dataset()
    image.NumberOfFrames = len(slices)
    image.PixelData = b"".join(each.PixelData for each in slices)
    shared.PixelMeasuresSequence = [_keep(slices[0], "PixelSpacing")]
    shared.PlaneOrientationSequence = [_keep(slices[0], "ImageOrientationPatient")]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = [_make_group(each) for each in slices]
    for keyword in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "RescaleSlope"):
        del image[keyword]
    del image["RescaleIntercept"]
    return image


def _make_group(image: Dataset) -> Dataset:
    group = Dataset()
    group.PlanePositionSequence = [_keep(image, "ImagePositionPatient")]
    group.PixelValueTransformationSequence = [_keep(image, "RescaleSlope", "RescaleIntercept")]
    return group


def _keep(image: Dataset, *keywords: str) -> Dataset:
    kept = Dataset()
    for keyword in keywords:
        setattr(kept, keyword, image[keyword].value)
    return kept


def make_cine(slices: int = 3, phases: int = 4, **tags: Any) -> list[Dataset]:
    """Make the frames of a cine, slice by slice; a tag may be a function of slice and phase.

    The heart rate differs from slice to slice.
    """
    usual = {
        "TriggerTime": lambda place, phase: round(phase * (40 + 2 * place), 2),
        "ImagePositionPatient": lambda place, _: [-7.5, 12.25, STEP_MM * place],
        "Modality": "MR",
        "SliceThickness": 8,
    }
    given = {
        keyword: partial(_call_with_place, value, phases) if callable(value) else value
        for keyword, value in {**usual, **tags}.items()
    }
    return make_slices(slices * phases, **given)


def _call_with_place(value: Any, phases: int, index: int) -> Any:
    return value(*divmod(index, phases))
