"""MetaImage, NRRD and DICOM: the same grid as NIfTI gives, and stacks that are not whole are refused."""

import locale
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from uumamba.data.scan import read_image, read_label, write_label
from uumamba.runtime.errors import CaseError


@pytest.fixture(autouse=True)
def _locale_kept() -> Iterator[None]:
    """SimpleITK leaves the process in the C locale when it writes DICOM, too."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture
def image() -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).integers(0, 900, (5, 6, 7)).astype(np.int16))
    image.SetSpacing((1.25, 1.5, 8.0))
    image.SetOrigin((3.0, -4.0, 5.0))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    return image


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd"])
def test_other_formats_give_the_grid_that_nibabel_sees_of_the_same_image(
    image: SimpleITK.Image, tmp_path: Path, suffix: str
) -> None:
    for name in (f"a{suffix}", "b.nii.gz"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
    scan, expected = read_image(tmp_path / f"a{suffix}"), nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(scan.array, np.asarray(expected.dataobj))
    np.testing.assert_allclose(scan.affine, expected.affine, atol=1e-5)
    np.testing.assert_allclose(scan.spacing_mm, expected.header.get_zooms())


def test_a_label_written_like_a_metaimage_lies_on_it(image: SimpleITK.Image, tmp_path: Path) -> None:
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    scan = read_image(tmp_path / "a.mha")
    label = (scan.array > 400).astype(np.uint8)
    write_label(tmp_path / "out.nii.gz", label, like=scan)
    back = SimpleITK.ReadImage(str(tmp_path / "out.nii.gz"))
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(back, get)(), getattr(image, get)(), atol=1e-5)
    assert np.array_equal(SimpleITK.GetArrayFromImage(back), label.transpose(2, 1, 0))
    assert np.array_equal(read_label(tmp_path / "out.nii.gz", structures={"LV": 1}).array, label)


def test_a_damaged_or_unsuitable_file_is_refused(image: SimpleITK.Image, tmp_path: Path) -> None:
    SimpleITK.WriteImage(image, str(tmp_path / "a.nrrd"))
    (tmp_path / "a.nrrd").write_bytes((tmp_path / "a.nrrd").read_bytes()[:100])
    with pytest.raises(CaseError, match=r"a.nrrd cannot be read"):
        read_image(tmp_path / "a.nrrd")
    vectors = SimpleITK.Compose(image, image)
    SimpleITK.WriteImage(vectors, str(tmp_path / "b.mha"))
    with pytest.raises(CaseError, match="2 values a voxel"):
        read_image(tmp_path / "b.mha")
    SimpleITK.WriteImage(SimpleITK.JoinSeries([image, image]), str(tmp_path / "c.mha"))
    with pytest.raises(CaseError, match=r"4-D.*pick one frame"):
        read_image(tmp_path / "c.mha")
    SimpleITK.WriteImage(image, str(tmp_path / "d.mha"))
    with pytest.raises(CaseError, match="the limit is"):
        read_image(tmp_path / "d.mha", max_bytes=100)


def test_a_truncated_metaimage_is_refused(image: SimpleITK.Image, tmp_path: Path) -> None:
    SimpleITK.WriteImage(image, str(tmp_path / "a.mha"))
    (tmp_path / "a.mha").write_bytes((tmp_path / "a.mha").read_bytes()[:-100])
    with pytest.raises(CaseError, match=r"a.mha cannot be read"):
        read_image(tmp_path / "a.mha")


def write_series(folder: Path, positions_mm: list[float], uid: str = "1.2.3") -> Path:
    """One DICOM file a slice, axial, 2 mm in plane."""
    folder.mkdir(exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, position in enumerate(positions_mm):
        plane = SimpleITK.GetImageFromArray(np.full((1, 6, 7), 10 * number + 1, dtype=np.int16))
        plane.SetSpacing((2.0, 2.0, 5.0))
        tags = {
            "0008|0060": "MR",
            "0020|000e": uid,
            "0020|000d": "1.2",
            "0008|0018": f"{uid}.{number + 1}",
            "0020|0032": f"0\\0\\{position}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(number),
        }
        for tag, value in tags.items():
            plane.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{uid}-{number}.dcm"))
        writer.Execute(plane)
    return folder


def test_a_dicom_series_is_stacked_by_position(tmp_path: Path) -> None:
    scan = read_image(write_series(tmp_path / "s", [12.0, 0.0, 6.0]))
    assert scan.array.shape == (7, 6, 3)
    assert scan.array[0, 0].tolist() == [11, 21, 1]
    np.testing.assert_allclose(scan.spacing_mm, (2, 2, 6))
    np.testing.assert_allclose(scan.affine[:3, :3], np.diag([-2.0, -2.0, 6.0]))


def test_reading_a_dicom_series_leaves_the_locale_as_it_was(tmp_path: Path) -> None:
    write_series(tmp_path / "s", [0.0, 6.0])
    before = locale.setlocale(locale.LC_ALL, "C.UTF-8")
    read_image(tmp_path / "s")
    assert locale.setlocale(locale.LC_ALL) == before


@pytest.mark.parametrize(
    ("positions_mm", "message"),
    [([0, 6, 18, 24], "6.00 to 12.00 mm apart; restore the missing"), ([0, 6, 6, 12], "lie at one place")],
)
def test_a_stack_with_a_gap_or_a_double_slice_is_refused(
    tmp_path: Path, positions_mm: list[float], message: str
) -> None:
    with pytest.raises(CaseError, match=message):
        read_image(write_series(tmp_path / "s", positions_mm))


def test_a_folder_must_hold_one_series(tmp_path: Path) -> None:
    write_series(tmp_path / "s", [0.0, 6.0])
    write_series(tmp_path / "s", [0.0, 6.0], uid="1.2.9")
    with pytest.raises(CaseError, match="holds 2 DICOM series; give a folder with one series"):
        read_image(tmp_path / "s")


def test_a_real_series_has_the_step_of_its_positions_not_its_slice_thickness(real_data: Path) -> None:
    folder = real_data / "totalsegmentator" / "example_ct_dicom"
    if not folder.is_dir():
        pytest.skip(f"real data: {folder} is absent")
    scan = read_image(folder)
    assert scan.array.shape == (512, 512, 20)
    assert scan.spacing_mm[2] == pytest.approx(2.0)
