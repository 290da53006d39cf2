"""Every format gives the same grid; damaged files are refused."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from uumamba.data.case import Case
from uumamba.data.label_scheme import number_classes
from uumamba.data.scan import (
    AcdcSpacingWarning,
    Scan,
    ScanWarning,
    check_same_grid,
    encode_classes,
    read_case,
    read_image,
    read_label,
    write_label,
)

WriteScan = Callable[..., Path]
FORMATS = ("nii", "nii.gz", "mha", "mhd", "nrrd", "dicom")


@pytest.fixture
def image() -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).integers(0, 4, (5, 6, 7)).astype(np.int16))
    image.SetSpacing((1.25, 1.5, 8.0))
    image.SetOrigin((3.0, -4.0, 5.0))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    return image


def stored(image: SimpleITK.Image, folder: Path, suffix: str, write_series: Callable[..., Path]) -> Path:
    if suffix == "dicom":
        return write_series(image)
    SimpleITK.WriteImage(image, str(folder / f"a.{suffix}"))
    return folder / f"a.{suffix}"


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_array_and_the_grid_of_nibabel(
    image: SimpleITK.Image, tmp_path: Path, suffix: str, write_series: Callable[..., Path]
) -> None:
    path = stored(image, tmp_path, suffix, write_series)
    SimpleITK.WriteImage(image, str(tmp_path / "expected.nii"))
    expected = nib.load(tmp_path / "expected.nii")
    scan, kept = read_image(path), read_image(path, keep_integers=True)
    assert (scan.array.dtype, scan.array.shape, kept.array.dtype) == (np.float32, (7, 6, 5), np.int16)
    for array in (scan.array, kept.array):
        assert np.array_equal(array, np.asarray(expected.dataobj))
    np.testing.assert_allclose(scan.affine, expected.affine, atol=1e-5)
    np.testing.assert_allclose(scan.spacing_mm, (1.25, 1.5, 8.0))
    assert scan.path == path


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_label_written_for_a_scan_of_any_format_has_its_grid(
    image: SimpleITK.Image, tmp_path: Path, suffix: str, write_series: Callable[..., Path], structures: dict[str, int]
) -> None:
    path = stored(image, tmp_path, suffix, write_series)
    scan, label = read_image(path), read_label(path, structures=structures)
    assert label.array.dtype == np.uint8
    out = tmp_path / "out.nii.gz"
    write_label(out, label.array, like=scan)
    first = out.read_bytes()
    back = SimpleITK.ReadImage(str(out))
    assert np.array_equal(SimpleITK.GetArrayFromImage(back), SimpleITK.GetArrayFromImage(image))
    for get in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        np.testing.assert_allclose(getattr(back, get)(), getattr(image, get)(), atol=1e-5)
    check_same_grid(scan, read_label(out, structures=structures), case_id="c7")
    write_label(out, label.array, like=scan)
    assert out.read_bytes() == first, "equal labels give equal bytes"


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_of_any_format_is_refused(
    image: SimpleITK.Image, tmp_path: Path, suffix: str, share: float, write_series: Callable[..., Path], refused: Any
) -> None:
    path = stored(image, tmp_path, suffix, write_series)
    for file in path.iterdir() if suffix == "dicom" else [path.with_suffix(".raw") if suffix == "mhd" else path]:
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
    with refused("file", case_id="c7") as error:
        read_image(path, case_id="c7")
    assert error.value.fix


@pytest.mark.parametrize("suffix", FORMATS)
def test_too_large_volumes_frames_and_vectors_of_any_format_are_refused(
    image: SimpleITK.Image, tmp_path: Path, suffix: str, write_series: Callable[..., Path], refused: Any
) -> None:
    path = stored(image, tmp_path, suffix, write_series)
    with refused("file", case_id="c7"):
        read_image(path, case_id="c7", max_bytes=100)
    for join in (SimpleITK.JoinSeries, SimpleITK.Compose) if suffix != "dicom" else ():
        SimpleITK.WriteImage(join([image, image]), str(path))
        with refused("shape", case_id="c7"):
            read_image(path, case_id="c7")


@pytest.mark.parametrize("name", ["absent.nii.gz", "link.nii.gz", "pipe.nii", "text.nii", "text.png", "empty"])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, refused: Any) -> None:
    (tmp_path / "link.nii.gz").symlink_to(tmp_path / "nowhere.nii.gz")
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "empty").mkdir()
    for text in ("text.nii", "text.png"):
        (tmp_path / text).write_text("no scan" * 100)
    with refused("file", case_id=name):
        read_image(tmp_path / name)


# Labels.


def test_a_label_is_read_as_uint8_and_may_have_no_foreground(write_scan: WriteScan, structures: dict[str, int]) -> None:
    label = np.random.default_rng(0).integers(0, 4, (7, 6, 5))
    for content in (label.astype(np.uint8), label.astype(np.float64) + 4e-4, np.zeros((7, 6, 5), np.uint8)):
        scan = read_label(write_scan("a.nii.gz", content), structures=structures)
        assert scan.array.dtype == np.uint8
        assert np.array_equal(scan.array, np.round(content))


@pytest.mark.parametrize(
    ("value", "got"),
    [(7, "7"), (255, "255"), (-1, "-1"), (1.5, 1.5), (0.99, 0.99), (np.inf, np.inf), (1e30, str(int(1e30)))],
)
def test_a_label_with_another_value_is_refused(
    write_scan: WriteScan, structures: dict[str, int], value: float, got: Any, refused: Any
) -> None:
    label = np.zeros((7, 6, 5), dtype=np.float64)
    label[1, 2, 3] = value
    with refused("label", got=got, case_id="c7"):
        read_label(write_scan("a.nii.gz", label), structures=structures, case_id="c7")


def test_an_image_given_as_label_and_an_invalid_structure_are_refused(write_scan: WriteScan, refused: Any) -> None:
    path = write_scan("a.nii.gz", np.arange(-256, 256, dtype=np.int16).reshape(8, 8, 8))
    for structures, key, got in (
        ({"RV": 1}, "label", "-256, -255, -254, -253, -252, ..."),
        ({"RV": 65536}, "structures", {"RV": 65536}),
    ):
        with refused(key, got=got):
            read_label(path, structures=structures)


def pair(write_scan: WriteScan, label: Any, shape: tuple[int, ...] = (7, 6, 5)) -> tuple[Scan, Scan]:
    """Read an image, and a label with the affine ``label``."""
    image = read_image(write_scan("a.nii.gz", np.ones((7, 6, 5), np.int16)))
    return image, read_label(write_scan("b.nii.gz", np.ones(shape, np.uint8), affine=label), structures={"RV": 1})


def shifted(mm: float, flip: float = 1.0) -> np.ndarray:
    affine = np.diag([1.5 * flip, 1.5, 8.0, 1.0])
    affine[0, 3] = mm
    return affine


def test_label_and_image_must_have_the_same_shape_and_position(write_scan: WriteScan, refused: Any) -> None:
    check_same_grid(*pair(write_scan, shifted(0.0)), case_id="c7")
    with pytest.warns(ScanWarning, match=r"^c7: .* 0\.40 voxels"):
        check_same_grid(*pair(write_scan, shifted(0.6)), case_id="c7")
    with refused("affine", got="a distance of 33.3 voxels between corners", case_id="c7"):
        check_same_grid(*pair(write_scan, shifted(50.0)), case_id="c7")
    with refused("affine", got="a distance of 12.0 voxels between corners", case_id="c7"):  # flipped: last of 7 voxels
        check_same_grid(*pair(write_scan, shifted(0.0, flip=-1.0)), case_id="c7")
    with refused("label", got=(7, 6, 4), case_id="c7"):
        check_same_grid(*pair(write_scan, shifted(0.0), (7, 6, 4)), case_id="c7")


def test_a_case_is_read_with_integers_and_needs_a_label(write_scan: WriteScan, refused: Any) -> None:
    paths = write_scan("a.nii.gz", np.ones((7, 6, 5), np.int16)), write_scan("b.nii.gz", np.ones((7, 6, 5), np.uint8))
    image, label = read_case(Case("c7", "p", "d", *paths), structures={"RV": 1})
    assert (image.array.dtype, label.array.dtype) == (np.int16, np.uint8)
    with refused("affine", case_id="c7"):
        read_case(
            Case("c7", "p", "d", paths[0], write_scan("b.nii.gz", label.array, affine=shifted(9))), structures={"RV": 1}
        )
    with refused("label", got=None, case_id="c7"):
        read_case(Case("c7", "p", "d", paths[0]), structures={"RV": 1})


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "key"),
    [
        ("b.nii.gz", (5, 6, 7), np.uint8, "label"),
        ("b.nii.gz", (7, 6, 5), np.float32, "label"),
        ("b.nii", (7, 6, 5), np.uint8, "path"),
    ],
)
def test_a_label_with_a_wrong_shape_dtype_or_suffix_is_not_written(
    write_scan: WriteScan, refused: Any, name: str, shape: tuple[int, ...], dtype: Any, key: str
) -> None:
    scan = read_image(write_scan("a.nii.gz", np.ones((7, 6, 5), np.int16)))
    with refused(key):
        write_label(scan.path.with_name(name), np.zeros(shape, dtype), like=scan)
    assert [path.name for path in scan.path.parent.iterdir()] == ["a.nii.gz"]


@pytest.mark.filterwarnings("ignore::uumamba.data.scan.AcdcSpacingWarning")
@pytest.mark.parametrize("acdc", [True, False])
def test_a_written_label_has_the_header_of_its_scan(write_scan: WriteScan, acdc: bool) -> None:
    array = np.arange(7 * 6 * 5, dtype=np.int16).reshape(7, 6, 5)
    path = write_scan("a.nii.gz", array, spacing_mm=(1.5, 1.25, 8), acdc=acdc, scl_slope=2.0, scl_inter=1.0)
    label = np.random.default_rng(1).integers(0, 4, array.shape).astype(np.uint8)
    write_label(path.with_name("out.nii.gz"), label, like=read_image(path))
    before, after = nib.load(path), nib.load(path.with_name("out.nii.gz"))
    assert after.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(after.dataobj), label)
    assert np.array_equal(before.affine, after.affine)
    assert np.array_equal(before.header.get_qform(), after.header.get_qform())
    for field in ("qform_code", "sform_code", "pixdim", "srow_x", "srow_y", "srow_z", "xyzt_units", "dim"):
        assert np.array_equal(before.header[field], after.header[field]), field


# Real files.


def test_a_real_acdc_patient_is_read_with_its_spacing_and_label(
    acdc_raw: Path, structures: dict[str, int], tmp_path: Path, refused: Any
) -> None:
    folder = acdc_raw / "training" / "patient001"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = read_image(folder / "patient001_frame01.nii.gz")
    assert [each.category for each in caught] == [AcdcSpacingWarning]
    label = read_label(folder / "patient001_frame01_gt.nii.gz", structures=structures)
    check_same_grid(image, label, case_id="patient001_frame01")
    assert image.spacing_mm == (1.5625, 1.5625, 10.0)
    assert np.array_equal(image.array, nib.load(image.path).get_fdata(dtype=np.float32))
    write_label(tmp_path / "out.nii.gz", label.array, like=image)
    written = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(written.get_fdata(), label.array)
    assert np.array_equal(written.affine, nib.load(image.path).affine)
    with refused("shape", case_id="patient090_4d.nii.gz"):
        read_image(acdc_raw / "training" / "patient090" / "patient090_4d.nii.gz")


@pytest.mark.parametrize("structures", [{"LV": 500, "RV": 3, "MYO": 65535}, {"a": 1, "b": 5}, {"a": 1, "b": 2}])
def test_label_values_become_classes_and_are_written_back(
    write_scan: WriteScan, tmp_path: Path, structures: dict[str, int]
) -> None:
    values = np.array([0, *structures.values()], dtype=np.uint16)
    stored = values[np.random.default_rng(0).integers(0, len(values), (7, 6, 5))]
    scan = read_label(write_scan("a.nii.gz", stored), structures=structures)
    assert scan.array.dtype == (np.uint16 if max(values) > 255 else np.uint8)
    assert np.array_equal(scan.array, stored)
    classes = encode_classes(scan.array, structures)
    assert classes.dtype == np.uint8
    for name, number in number_classes(structures).items():
        assert np.array_equal(classes == number, stored == structures[name])
    write_label(tmp_path / "out.nii.gz", classes, scan, structures=structures)
    assert np.array_equal(np.asarray(nib.load(tmp_path / "out.nii.gz").dataobj), stored)
