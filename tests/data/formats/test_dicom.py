"""DICOM series are read as by SimpleITK, sorted by position and scaled per slice."""

import locale
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, ExplicitVRBigEndian, ImplicitVRLittleEndian

from tests.data.formats.dicom_files import (
    COLUMNS,
    OBLIQUE,
    OBLIQUE_COLUMN,
    ROWS,
    compress,
    make_enhanced,
    make_slices,
    place_along,
    write_slices,
)
from uumamba.data.open_scan import open_scan
from uumamba.data.scan import Scan, ScanWarning, read_image

NORMAL = np.cross(OBLIQUE, OBLIQUE_COLUMN)
Make = Callable[[Path], list[Dataset]]


@pytest.fixture(autouse=True)
def _keep_locale() -> Iterator[None]:
    """SimpleITK, the reference, leaves the process in the C locale."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


def read_with_itk(names: Any) -> tuple[np.ndarray, np.ndarray]:
    """Read with SimpleITK; the second value is the affine in RAS+."""
    image = SimpleITK.ReadImage(names)
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine


def change_syntax(slices: list[Dataset], syntax: str) -> list[Dataset]:
    for image in slices:
        image.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
    return slices


GOOD: dict[str, Make] = {
    "a CT": lambda _: make_slices(),
    "reversed instance numbers": lambda _: make_slices(InstanceNumber=lambda index: 9 - index),
    "slices from head to feet": lambda _: make_slices(ImagePositionPatient=place_along((0, 0, -3.0))),
    "oblique axes": lambda _: make_slices(
        ImageOrientationPatient=[*OBLIQUE, *OBLIQUE_COLUMN],
        ImagePositionPatient=place_along(NORMAL * 8.0),
    ),
    "signed values": lambda _: make_slices(dtype=np.int16, RescaleSlope=1, RescaleIntercept=0),
    "signed values of 12 bits": lambda _: make_slices(dtype=np.int16, RescaleIntercept=-3),
    "unsigned values of 16 bits": lambda _: make_slices(bits=16),
    "bytes": lambda _: make_slices(dtype=np.uint8, bits=8),
    "an integer slope": lambda _: make_slices(RescaleSlope=2),
    "slopes of PET": lambda _: make_slices(RescaleIntercept=0, RescaleSlope=lambda index: 0.37 * (index + 1)),
    "MONOCHROME1": lambda _: make_slices(PhotometricInterpretation="MONOCHROME1"),
    "implicit types": lambda _: change_syntax(make_slices(), ImplicitVRLittleEndian),
}


@pytest.mark.parametrize("kind", GOOD)
def test_a_series_is_read_as_by_simpleitk(tmp_path: Path, kind: str) -> None:
    folder = write_slices(tmp_path / "series", GOOD[kind](tmp_path), name="{}.dcm")
    before = locale.setlocale(locale.LC_ALL, "C.UTF-8")
    scan = read_image(folder, keep_integers=True)
    assert locale.setlocale(locale.LC_ALL) == before
    expected, affine = read_with_itk(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    kept = expected.dtype if expected.dtype.kind in "iu" else np.dtype(np.float32)
    assert scan.array.dtype == kept
    assert np.array_equal(scan.array, expected.astype(kept))
    assert np.array_equal(scan.affine, affine) or np.allclose(scan.affine, affine, rtol=0, atol=1e-9)
    np.testing.assert_allclose(scan.spacing_mm, np.linalg.norm(affine[:3, :3], axis=0))


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
@pytest.mark.parametrize("codec", ["RLE", "JPEG", "JPEG2000"])
def test_a_compressed_series_has_the_voxels_of_the_uncompressed_one(
    tmp_path: Path, codec: str, dtype: Any, bits: int
) -> None:
    slices = make_slices(dtype=dtype, bits=bits)
    expected = read_image(write_slices(tmp_path / "plain", slices), keep_integers=True)
    compressed = [compress(image, codec, tmp_path / "scratch.dcm") for image in slices]
    scan = read_image(write_slices(tmp_path / "compressed", compressed), keep_integers=True)
    assert scan.array.dtype == expected.array.dtype
    assert np.array_equal(scan.array, expected.array)


def test_slices_of_several_slopes_keep_their_values(tmp_path: Path) -> None:
    """SimpleITK converts all slices to the dtype of the first, so each is compared with its own file."""
    slices = make_slices(RescaleIntercept=0, RescaleSlope=lambda index: (1, 0.5, 3, 0.25)[index])
    folder = write_slices(tmp_path / "series", slices)
    scan = read_image(folder)
    for index, file in enumerate(sorted(folder.iterdir())):
        assert np.array_equal(scan.array[:, :, index], read_with_itk(str(file))[0][:, :, 0].astype(np.float32))


def test_a_series_in_big_endian_has_the_same_voxels(tmp_path: Path) -> None:
    little = read_image(write_slices(tmp_path / "little", make_slices()))
    big = read_image(write_slices(tmp_path / "big", change_syntax(make_slices(), ExplicitVRBigEndian)))
    assert np.array_equal(little.array, big.array)
    assert np.array_equal(little.affine, big.affine)


def test_bits_above_the_stored_ones_are_ignored(tmp_path: Path) -> None:
    """Old files hold overlays there."""
    slices = make_slices()
    expected = read_image(write_slices(tmp_path / "clean", slices))
    for image in slices:
        image.PixelData = (np.frombuffer(image.PixelData, np.uint16) | np.uint16(0xA000)).tobytes()
    assert np.array_equal(read_image(write_slices(tmp_path / "overlay", slices)).array, expected.array)


def test_voxels_are_read_only_on_request(tmp_path: Path) -> None:
    folder = write_slices(tmp_path / "series", make_slices())
    opened = open_scan(folder)
    for file in folder.iterdir():
        file.unlink()
    assert opened.read_grid().array.shape == (COLUMNS, ROWS, 4)


# One file.


def test_an_enhanced_image_is_the_series_of_its_frames(tmp_path: Path) -> None:
    slices = make_slices(RescaleSlope=lambda index: index + 1, ImagePositionPatient=place_along((0, 0, -4.0)))
    series = read_image(write_slices(tmp_path / "series", slices), keep_integers=True)
    write_slices(tmp_path / "one", [make_enhanced(slices)])
    for path in (tmp_path / "one", tmp_path / "one" / "slice0.dcm"):
        enhanced = read_image(path, keep_integers=True)
        assert enhanced.array.dtype == series.array.dtype
        assert np.array_equal(enhanced.array, series.array)
        assert np.array_equal(enhanced.affine, series.affine)


@pytest.mark.parametrize(
    ("tags", "step_mm"),
    [({"SpacingBetweenSlices": 6, "SliceThickness": 4}, 6.0), ({"SliceThickness": 4}, 4.0)],
)
def test_a_single_file_takes_its_third_spacing_from_the_header(
    tmp_path: Path, tags: dict[str, Any], step_mm: float
) -> None:
    slices = make_slices(**tags)
    write_slices(tmp_path, slices)
    single = read_image(tmp_path / "slice1.dcm")  # not its neighbours
    assert (single.array.shape, single.spacing_mm) == ((COLUMNS, ROWS, 1), (0.5, 0.75, step_mm))
    slices[0].NumberOfFrames, slices[0].PixelData = 4, b"".join(image.PixelData for image in slices)
    write_slices(tmp_path / "stack", slices[:1])
    stack = read_image(tmp_path / "stack" / "slice0.dcm")
    assert (stack.array.shape, stack.spacing_mm) == ((COLUMNS, ROWS, 4), (0.5, 0.75, step_mm))
    assert np.array_equal(stack.affine[:, 3], [7.5, -12.25, 0, 1])
    assert np.array_equal(stack.array[:, :, 1:2], single.array)


@pytest.mark.parametrize("tags", [{"PixelSpacing": None}, {"PixelSpacing": [0, 0]}, {"SliceThickness": None}])
def test_a_missing_spacing_is_refused_unless_one_is_assumed(tmp_path: Path, tags: dict[str, Any], refused: Any) -> None:
    folder = write_slices(tmp_path, make_slices(1, **({"SliceThickness": 5} | tags)))
    with refused("spacing_mm", case_id="c7") as error:
        read_image(folder, case_id="c7")
    assert "--assume-spacing" in error.value.fix
    assert "PixelSpacing" in error.value.expected
    with pytest.warns(ScanWarning, match="assumed"):
        assert read_image(folder, assume_spacing_mm=(0.5, 0.75, 5)).spacing_mm == (0.5, 0.75, 5)


# Files of a folder.


@pytest.mark.parametrize("name", ["{}", "{}.ima", "CT.1.2.840.{}"])
def test_other_files_beside_a_series_are_left_out(tmp_path: Path, name: str) -> None:
    folder = write_slices(tmp_path, make_slices(), name=name)
    (report,) = make_slices(1, SOPClassUID=BasicTextSRStorage)
    for keyword in ("Rows", "PixelData"):
        del report[keyword]
    write_slices(folder, [report], name="report.dcm")
    (folder / "thumbnails").mkdir()
    for other in ("notes.txt", "preview.jpg", ".hidden.dcm", "DICOMDIR"):
        (folder / other).write_text("no image")
    assert read_image(folder).array.shape == (COLUMNS, ROWS, 4)


# Tilted slices.


@pytest.mark.parametrize("kind", ["series", "enhanced"])
def test_a_tilt_is_repaired_up_to_one_degree_and_refused_beyond(tmp_path: Path, kind: str, refused: Any) -> None:
    def write(tilt_deg: float) -> Path:
        tilt = np.radians(tilt_deg)
        axis = 5.0 * (np.cos(tilt) * NORMAL + np.sin(tilt) * np.array(OBLIQUE_COLUMN))
        slices = make_slices(
            ImageOrientationPatient=[*OBLIQUE, *OBLIQUE_COLUMN], ImagePositionPatient=place_along(axis)
        )
        return write_slices(tmp_path / str(tilt_deg), slices if kind == "series" else [make_enhanced(slices)])

    straight = read_image(write(0.0))
    with pytest.warns(ScanWarning, match=r"0\.50 degrees off a right angle"):
        repaired = read_image(write(0.5))
    assert np.array_equal(repaired.array, straight.array)
    axes = repaired.affine[:3, :3] / repaired.spacing_mm
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    with refused("affine", got="a deviation of 5.0 degrees from right angles between the axes"):
        read_image(write(5.0))


def test_the_last_digits_of_rounded_positions_do_not_shear_a_series(tmp_path: Path) -> None:
    cosines = np.round([*OBLIQUE, *OBLIQUE_COLUMN], 4).tolist()
    positions = place_along(NORMAL * 5.0)
    slices = make_slices(
        40, ImageOrientationPatient=cosines, ImagePositionPatient=lambda index: np.round(positions(index), 2).tolist()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scan: Scan = read_image(write_slices(tmp_path, slices))
    assert scan.spacing_mm[2] == pytest.approx(5.0, abs=1e-3)


# Real files.


def test_a_real_series_is_read_as_by_simpleitk(find_real: Callable[[str], Path]) -> None:
    folder = find_real("totalsegmentator/example_ct_dicom")
    scan = read_image(folder, keep_integers=True)
    expected, affine = read_with_itk(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    assert scan.array.dtype == expected.dtype == np.int16
    assert np.array_equal(scan.array, expected)
    assert np.array_equal(scan.affine, affine)
    assert scan.spacing_mm[2] == pytest.approx(2.0)


def test_a_real_cine_is_refused(find_real: Callable[[str], Path], refused: Any) -> None:
    folder = find_real("sunnybrook/dicoms/SCD0000101")
    with refused("shape", got="a cine of 2 frames"):
        read_image(folder)
