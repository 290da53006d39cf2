"""What is read, what is repaired with a warning, what is refused, and that a written label lies on its scan."""

import gzip
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from uumamba.data.scan import AcdcSpacingWarning, ScanWarning, check_same_grid, read_image, read_label, write_label
from uumamba.runtime.errors import CaseError

WriteScan = Callable[..., Path]
SPACING = (1.5625, 1.40625, 10.0)


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 900, (7, 6, 5)).astype(np.int16)


def header_edited(path: Path, **fields: Any) -> Path:
    """The file with some header fields overwritten, unchecked."""
    stored = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    header = nib.Nifti1Header(stored[:348], check=False)
    for field, value in fields.items():
        header[field] = value
    edited = header.binaryblock + stored[348:]
    path.write_bytes(gzip.compress(edited) if path.name.endswith(".gz") else edited)
    return path


# What is read.


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", ">i2", "float32", "float64"])
def test_every_real_type_is_read_as_it_is(write_scan: WriteScan, array: np.ndarray, name: str, dtype: str) -> None:
    stored = (array % 200).astype(dtype)
    scan = read_image(write_scan(name, stored, spacing_mm=SPACING))
    assert scan.array.dtype == np.float32
    assert np.array_equal(scan.array, stored)
    assert scan.spacing_mm == SPACING
    assert np.array_equal(scan.affine, np.diag([*SPACING, 1]))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", ">i2"])
def test_integers_can_be_kept_as_they_are_stored(write_scan: WriteScan, array: np.ndarray, dtype: str) -> None:
    stored = (array % 200).astype(dtype)
    scan = read_image(write_scan("a.nii.gz", stored), keep_integers=True)
    assert scan.array.dtype == stored.dtype.newbyteorder("=")  # nibabel writes in the machine's order
    assert np.array_equal(scan.array, stored)
    assert read_image(write_scan("b.nii.gz", stored.astype(np.float64)), keep_integers=True).array.dtype == np.float32


@pytest.mark.parametrize(("intercept", "kept"), [(-1024.0, "int16"), (-1024.5, "float32"), (60000.0, "float32")])
def test_a_shift_by_whole_numbers_keeps_integers_where_they_fit(
    write_scan: WriteScan, array: np.ndarray, intercept: float, kept: str
) -> None:
    path = header_edited(write_scan("a.nii.gz", array.astype(np.uint16)), scl_slope=1, scl_inter=intercept)
    scan = read_image(path, keep_integers=True)
    assert scan.array.dtype == np.dtype(kept)
    assert np.array_equal(scan.array, nib.load(path).get_fdata())


@pytest.mark.parametrize("length", [24, 50_000])
def test_a_header_with_an_extension_of_any_length_is_read(tmp_path: Path, array: np.ndarray, length: int) -> None:
    image = nib.Nifti1Image(array, np.diag([*SPACING, 1]))
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * length))
    nib.save(image, tmp_path / "a.nii.gz")
    scan = read_image(tmp_path / "a.nii.gz")
    assert np.array_equal(scan.array, array)
    write_label(tmp_path / "b.nii.gz", np.ones(array.shape, np.uint8), scan)
    assert (np.asarray(nib.load(tmp_path / "b.nii.gz").dataobj) == 1).all()


def test_members_of_a_gzip_file_are_read_one_after_the_other(write_scan: WriteScan, array: np.ndarray) -> None:
    path = write_scan("a.nii.gz", array)
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[:100]) + gzip.compress(b"") + gzip.compress(whole[100:]) + b"behind")
    assert np.array_equal(read_image(path).array, array)


def test_a_second_version_nifti_is_read(tmp_path: Path, array: np.ndarray) -> None:
    nib.save(nib.Nifti2Image(array, np.diag([*SPACING, 1])), tmp_path / "a.nii.gz")
    assert np.array_equal(read_image(tmp_path / "a.nii.gz").array, array)


@pytest.mark.parametrize("slope", [0.0, np.nan])
def test_integers_without_a_scale_lose_no_bit(write_scan: WriteScan, array: np.ndarray, slope: float) -> None:
    path = header_edited(write_scan("a.nii.gz", array), scl_slope=slope, scl_inter=slope)
    assert np.array_equal(read_image(path).array, array)


def test_a_scale_is_applied_as_nibabel_does(write_scan: WriteScan, array: np.ndarray) -> None:
    path = header_edited(write_scan("a.nii.gz", array), scl_slope=2.5, scl_inter=-7.0)
    np.testing.assert_allclose(read_image(path).array, nib.load(path).get_fdata())


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1), (4, 4)])
def test_qform_alone_sform_alone_or_both_give_the_affine(
    write_scan: WriteScan, array: np.ndarray, codes: tuple[int, int]
) -> None:
    affine = np.array([[0, -1.5, 0, 9], [1.25, 0, 0, -8], [0, 0, 6, 7], [0, 0, 0, 1]])  # a turned axial scan
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=codes[0])
    image.set_sform(affine if codes[1] else None, code=codes[1])
    nib.save(image, write_scan("a.nii.gz", array))
    scan = read_image(write_scan("b.nii.gz", array).with_name("a.nii.gz"))
    np.testing.assert_allclose(scan.affine, affine, atol=1e-5)
    np.testing.assert_allclose(scan.spacing_mm, (1.25, 1.5, 6))


def test_a_mirrored_affine_is_accepted(write_scan: WriteScan, array: np.ndarray) -> None:
    affine = np.diag([-1.5, 1.5, 8.0, 1.0])
    assert np.array_equal(read_image(write_scan("a.nii.gz", array, affine=affine)).affine, affine)


def test_a_flat_image_gets_a_third_axis_and_its_label_loses_it_again(write_scan: WriteScan, array: np.ndarray) -> None:
    scan = read_image(write_scan("a.nii.gz", array[..., 0]))
    assert scan.array.shape == (7, 6, 1)
    path = scan.path.with_name("label.nii.gz")
    write_label(path, np.zeros((7, 6, 1), np.uint8), like=scan)
    assert nib.load(path).shape == (7, 6)


# ACDC's spacing.


def test_acdcs_spacing_is_pixdims_with_one_warning_a_process(write_scan: WriteScan, array: np.ndarray) -> None:
    path = write_scan("a.nii.gz", array, spacing_mm=SPACING, acdc=True)
    with pytest.warns(AcdcSpacingWarning, match="taken from pixdim") as caught:
        first, second = read_image(path), read_image(path)
    assert len(caught) == 1
    assert first.spacing_mm == second.spacing_mm == SPACING
    assert np.array_equal(first.affine, np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1]))


def test_unit_spacing_needs_no_warning(write_scan: WriteScan, array: np.ndarray) -> None:
    assert read_image(write_scan("a.nii.gz", array, spacing_mm=(1, 1, 1), acdc=True)).spacing_mm == (1, 1, 1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"qform_code": 1}, "sform and qform place the scan differently"),
        ({"srow_x": (-2, 0, 0, 0)}, "spacing 2 x 1 x 1 mm but pixdim says 1.05 x 1.05 x 10 mm"),
    ],
)
def test_any_other_disagreement_of_spacings_is_refused(
    write_scan: WriteScan, array: np.ndarray, fields: dict[str, Any], message: str
) -> None:
    path = header_edited(write_scan("a.nii.gz", array, spacing_mm=(1.05, 1.05, 10), acdc=True), **fields)
    with pytest.raises(CaseError, match=message):
        read_image(path)


def test_a_coded_qform_beside_a_unit_sform_is_not_acdcs_case(write_scan: WriteScan, array: np.ndarray) -> None:
    path = write_scan("a.nii.gz", array, spacing_mm=(1.05, 1.05, 1.05), acdc=True)
    # Turned half about z, as the sform is: within half a voxel of it over 7 voxels.
    with pytest.raises(CaseError, match=r"spacing 1 x 1 x 1 mm but pixdim says 1\.05"):
        read_image(header_edited(path, qform_code=1, quatern_d=1.0))


# What is repaired.


def repaired(path: Path, message: str) -> Any:
    with pytest.warns(ScanWarning, match=rf"^c7: .*{message}") as caught:
        scan = read_image(path, case_id="c7")
    assert len(caught) == 1
    return scan


@pytest.mark.parametrize(("written", "named"), [("a.nii", "a.nii.gz"), ("a.nii.gz", "a.nii")])
def test_a_wrong_suffix_is_seen_through(write_scan: WriteScan, array: np.ndarray, written: str, named: str) -> None:
    path = write_scan(written, array)
    path = path.rename(path.with_name(named))
    assert np.array_equal(repaired(path, "compressed, against its name").array, array)


def test_a_fourth_axis_of_size_1_is_dropped_and_restored(write_scan: WriteScan, array: np.ndarray) -> None:
    scan = repaired(write_scan("a.nii.gz", array[..., None]), r"\(7, 6, 5, 1\) is taken as \(7, 6, 5\)")
    path = scan.path.with_name("label.nii.gz")
    write_label(path, np.zeros((7, 6, 5), np.uint8), like=scan)
    assert nib.load(path).shape == (7, 6, 5, 1)


@pytest.mark.parametrize(("unit", "millimetres"), [("meter", 1000.0), ("micron", 0.001)])
def test_other_units_are_converted(write_scan: WriteScan, array: np.ndarray, unit: str, millimetres: float) -> None:
    spacing = tuple(mm / millimetres for mm in SPACING)
    path = write_scan("a.nii.gz", array, spacing_mm=spacing)
    image = nib.load(path)
    image.header.set_xyzt_units(unit)
    nib.save(nib.Nifti1Image(array, image.affine, image.header), path.with_name("b.nii.gz"))
    np.testing.assert_allclose(repaired(path.with_name("b.nii.gz"), unit).spacing_mm, SPACING, rtol=1e-6)


def test_slightly_skew_axes_are_straightened_and_hardly_skew_ones_are_not_mentioned(
    write_scan: WriteScan, array: np.ndarray
) -> None:
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    affine[0, 1] = 1.5 * 1e-4
    read_image(write_scan("a.nii.gz", array, affine=affine))
    affine[0, 1] = 1.5 * np.tan(np.radians(0.5))
    scan = repaired(write_scan("a.nii.gz", array, affine=affine), "0.50 degrees off a right angle")
    axes = scan.affine[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.diag(np.square(scan.spacing_mm)), atol=1e-6)


def test_a_few_nan_voxels_in_the_air_become_the_smallest_value(write_scan: WriteScan) -> None:
    voxels = np.ones((20, 20, 8), dtype=np.float32)
    voxels[6:14, 6:14] = 100
    voxels[0, 0, 0], voxels[19, 19, 7] = np.nan, np.inf
    scan = repaired(write_scan("a.nii.gz", voxels), "2 NaN or infinite voxels outside the body are set to 1")
    assert scan.array[0, 0, 0] == scan.array[19, 19, 7] == 1


def test_values_beyond_float32_are_clipped(write_scan: WriteScan) -> None:
    voxels = np.random.default_rng(0).random((5, 5, 5))
    voxels[2, 2, 2] = 1e300
    assert repaired(write_scan("a.nii.gz", voxels), "reach 1e[+]300").array.max() == np.finfo(np.float32).max


# What is refused.


def broken_zero_bytes(write_scan: WriteScan, array: np.ndarray) -> Path:
    path = write_scan("a.nii.gz", array)
    path.write_bytes(b"")
    return path


def cut(share: float, name: str = "a.nii.gz") -> Callable[[WriteScan, np.ndarray], Path]:
    def broken(write_scan: WriteScan, array: np.ndarray) -> Path:
        path = write_scan(name, np.tile(array, (4, 4, 4)))
        stored = path.read_bytes()
        path.write_bytes(stored[: int(share * len(stored))])
        return path

    return broken


def broken_checksum(write_scan: WriteScan, array: np.ndarray) -> Path:
    path = write_scan("a.nii.gz", array)
    stored = bytearray(path.read_bytes())
    stored[-6] ^= 1
    path.write_bytes(bytes(stored))
    return path


def broken_folder(write_scan: WriteScan, array: np.ndarray) -> Path:
    path = write_scan("b.nii.gz", array).with_name("a.nii.gz")
    path.mkdir()
    return path


def broken_pipe(write_scan: WriteScan, array: np.ndarray) -> Path:
    path = write_scan("b.nii.gz", array).with_name("a.nii.gz")
    os.mkfifo(path)
    return path


def broken_link(write_scan: WriteScan, array: np.ndarray) -> Path:
    path = write_scan("b.nii.gz", array).with_name("a.nii.gz")
    path.symlink_to(path.with_name("nowhere.nii.gz"))
    return path


def broken_bomb(write_scan: WriteScan, array: np.ndarray) -> Path:
    path = write_scan("a.nii.gz", array)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()) + bytes(50 * 2**20)))
    return path


def broken_read(write_scan: WriteScan, array: np.ndarray) -> Path:
    """A file whose bytes the system refuses, to root as well: this process's memory at address 0."""
    path = write_scan("a.nii", array)
    path.unlink()
    path.symlink_to("/proc/self/mem")
    return path


def broken_axes(degrees: float) -> Callable[[WriteScan, np.ndarray], Path]:
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    affine[:2, 1] = 1.5 * np.sin(np.radians(degrees)), 1.5 * np.cos(np.radians(degrees))
    return lambda write_scan, array: write_scan("a.nii.gz", array, affine=affine)


def broken_voxels(change: Callable[[np.ndarray], Any]) -> Callable[[WriteScan, np.ndarray], Path]:
    def broken(write_scan: WriteScan, array: np.ndarray) -> Path:
        voxels = np.ones((20, 20, 8), dtype=np.float32)
        voxels[6:14, 6:14] = 100
        changed = change(voxels)
        return write_scan("a.nii.gz", voxels if changed is None else changed)

    return broken


def edited(**fields: Any) -> Callable[[WriteScan, np.ndarray], Path]:
    return lambda write_scan, array: header_edited(write_scan("a.nii.gz", array), **fields)


def colours(voxels: np.ndarray) -> np.ndarray:
    return np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


REFUSED = {
    "zero bytes": (broken_zero_bytes, "is empty"),
    "cut at 10 %": (cut(0.1), "cut off|within its header"),
    "cut at 50 %": (cut(0.5), "cut off"),
    "cut at 99 %": (cut(0.99), "cut off"),
    "cut uncompressed": (cut(0.5, "a.nii"), r"ends after \d+ of \d+ bytes"),
    "cut in the header": (cut(0.01, "a.nii"), "within its header"),
    "wrong checksum": (broken_checksum, "cannot be unpacked .*incorrect data check"),
    "more voxels in the header": (edited(dim=(3, 7, 6, 50, 1, 1, 1, 1)), r"ends after 772 of 4552 bytes"),
    "wrong magic": (edited(magic=b"ni1"), "magic b'ni1"),
    "negative size": (edited(dim=(3, 7, -6, 5, 1, 1, 1, 1)), r"sizes \[3, 7, -6, 5"),
    "no axes": (edited(dim=(0, 7, 6, 5, 1, 1, 1, 1)), r"sizes \[0, 7"),
    "huge sizes": (edited(dim=(3, 32767, 32767, 32767, 1, 1, 1, 1)), "GiB, the limit is 8.0"),
    "bomb": (broken_bomb, "unpacks to far more"),
    "folder": (broken_folder, "0 DICOM series"),
    "pipe": (broken_pipe, "is no regular file"),
    "dangling link": (broken_link, "does not exist"),
    "unreadable": (broken_read, r"a\.nii cannot be read \(Input/output error\)"),
    "sheared by 5 degrees": (broken_axes(5), "5.0 degrees off a right angle"),
    "no codes": (edited(sform_code=0, qform_code=0), "neither its sform nor its qform is coded"),
    "zero pixdim": (edited(pixdim=(1, 0, 1.5, 8, 1, 1, 1, 1)), r"pixdim\) is 0 x 1.5 x 8"),
    "nan pixdim": (edited(pixdim=(1, np.nan, 1.5, 8, 1, 1, 1, 1)), r"pixdim\) is nan"),
    "infinite pixdim": (edited(pixdim=(1, np.inf, 1.5, 8, 1, 1, 1, 1)), r"pixdim\) is inf"),
    "other pixdim": (edited(pixdim=(1, 1.5, 1.5, 5, 1, 1, 1, 1)), "1.5 x 1.5 x 8 mm but pixdim says 1.5 x 1.5 x 5"),
    "nan affine": (edited(srow_x=(np.nan, 0, 0, 0)), "maps no volume"),
    "collapsed affine": (edited(srow_x=(0, 0, 0, 0)), "maps no volume"),
    "sform against qform": (edited(qform_code=1, quatern_d=1.0), "place the scan differently"),
    "infinite slope": (edited(scl_slope=np.inf), "scaled by inf"),
    "nan offset": (edited(vox_offset=np.nan), "the first voxel at byte nan"),
    "unknown type": (edited(datatype=3), "unknown data type 3"),
    "cine": (broken_voxels(lambda voxels: np.stack([voxels] * 12, axis=-1)), "4-D, with 12 frames.*pick one frame"),
    "vectors": (broken_voxels(lambda voxels: np.zeros((4, 4, 4, 1, 3), np.float32)), "vectors or colours"),
    "colours": (broken_voxels(colours), "not real numbers"),
    "complex": (broken_voxels(lambda voxels: voxels.astype(np.complex64)), "complex64, not real numbers"),
    "nan in too much air": (
        broken_voxels(lambda voxels: voxels[:4, :, 0].fill(np.nan)),
        "2.50% of its voxels are NaN or infinite;",
    ),
    "nan in the body": (
        broken_voxels(lambda voxels: voxels[9:11, 9:11, 0].fill(np.nan)),
        "NaN or infinite, in the body",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_file_is_refused_with_the_case_the_rule_and_a_cure(
    write_scan: WriteScan, array: np.ndarray, what: str
) -> None:
    make, message = REFUSED[what]
    path = make(write_scan, array)
    with pytest.raises(CaseError, match=message) as caught:
        read_image(path, case_id="c7")
    assert caught.value.case_id == "c7"
    assert caught.value.cure


def test_a_text_file_with_the_name_of_a_scan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_text("no scan" * 100)
    with pytest.raises(CaseError, match=r"a.nii is no NIfTI file"):
        read_image(tmp_path / "a.nii")
    (tmp_path / "a.png").write_text("no scan")
    with pytest.raises(CaseError, match="no known format"):
        read_image(tmp_path / "a.png")


def test_the_size_limit_can_be_set(write_scan: WriteScan, array: np.ndarray) -> None:
    with pytest.raises(CaseError, match="the limit is"):
        read_image(write_scan("a.nii.gz", array), max_bytes=100)


# Labels.


def test_a_label_is_read_as_uint8_and_may_be_empty(write_scan: WriteScan, structures: dict[str, int]) -> None:
    label = np.random.default_rng(0).integers(0, 4, (7, 6, 5))
    for stored in (label.astype(np.uint8), label.astype(np.float64) + 4e-4, np.zeros((7, 6, 5), np.uint8)):
        scan = read_label(write_scan("a.nii.gz", stored), structures=structures)
        assert scan.array.dtype == np.uint8
        assert np.array_equal(scan.array, np.round(stored))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "c7: its label holds the value 7, known are 0 background, 1 RV, 2 MYO, 3 LV; correct"),
        (255, "holds the value 255"),
        (-1, "holds the value -1"),
        (1.5, "no integers, such as 1.5"),
        (0.99, "no integers, such as 0.99"),
        (np.nan, "no integers, such as nan"),
        (1e30, "holds the value 1"),
    ],
)
def test_a_label_with_another_value_is_refused(
    write_scan: WriteScan, structures: dict[str, int], value: float, message: str
) -> None:
    label = np.zeros((7, 6, 5), dtype=np.float64)
    label[1, 2, 3] = value
    with pytest.raises(CaseError, match=message):
        read_label(write_scan("a.nii.gz", label), structures=structures, case_id="c7")


def test_an_image_in_the_place_of_the_label_is_seen(write_scan: WriteScan, structures: dict[str, int]) -> None:
    image = np.arange(-1000, -1000 + 8 * 8 * 8, dtype=np.int16).reshape(8, 8, 8)
    with pytest.raises(CaseError, match=r"c7: its label holds 512 different values from -1000 to -489, as an image"):
        read_label(write_scan("a.nii.gz", image), structures=structures, case_id="c7")


def test_structures_that_do_not_fit_a_byte_are_refused(write_scan: WriteScan, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="values from 1 to 255"):
        read_label(write_scan("a.nii.gz", array), structures={"RV": 256})


def shifted_pair(write_scan: WriteScan, shift_mm: float, shape: tuple[int, ...] = (7, 6, 5)) -> tuple[Any, Any]:
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    image = read_image(write_scan("a.nii.gz", np.ones((7, 6, 5), np.int16), affine=affine))
    affine[0, 3] = shift_mm
    return image, read_label(write_scan("b.nii.gz", np.ones(shape, np.uint8), affine=affine), structures={"RV": 1})


def test_label_and_image_must_share_shape_and_place(write_scan: WriteScan) -> None:
    check_same_grid(*shifted_pair(write_scan, 0.0), case_id="c7")
    with pytest.warns(ScanWarning, match="c7: image and label lie 0.40 voxels apart"):
        check_same_grid(*shifted_pair(write_scan, 0.6), case_id="c7")
    with pytest.raises(CaseError, match=r"c7: image and label lie up to 33.3 voxels apart"):
        check_same_grid(*shifted_pair(write_scan, 50.0), case_id="c7")
    with pytest.raises(CaseError, match=r"c7: the image has the shape \(7, 6, 5\), its label \(7, 6, 4\)"):
        check_same_grid(*shifted_pair(write_scan, 0.0, (7, 6, 4)), case_id="c7")


def test_a_label_that_is_stored_flipped_is_refused(write_scan: WriteScan) -> None:
    image = read_image(write_scan("a.nii.gz", np.ones((7, 6, 5), np.int16)))
    affine = np.diag([-1.5, 1.5, 8.0, 1.0])
    label = read_label(write_scan("b.nii.gz", np.ones((7, 6, 5), np.uint8), affine=affine), structures={"RV": 1})
    with pytest.raises(CaseError, match="voxels apart"):
        check_same_grid(image, label, case_id="c7")


# Writing.


def written(scan: Any, label: np.ndarray) -> Path:
    path: Path = scan.path.with_name("out.nii.gz")
    write_label(path, label, like=scan)
    return path


@pytest.mark.filterwarnings("ignore::uumamba.data.warn.AcdcSpacingWarning")
@pytest.mark.parametrize("acdc", [True, False])
def test_a_label_written_like_a_scan_lies_on_it_for_nibabel_and_simpleitk(
    write_scan: WriteScan, array: np.ndarray, acdc: bool
) -> None:
    path = write_scan("a.nii.gz", array, spacing_mm=SPACING, acdc=acdc)
    label = np.random.default_rng(1).integers(0, 4, array.shape).astype(np.uint8)
    out = written(read_image(path), label)
    before, after = nib.load(path), nib.load(out)
    assert after.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(after.dataobj), label)
    assert np.array_equal(before.affine, after.affine)
    for field in ("qform_code", "sform_code", "pixdim", "srow_x", "srow_y", "srow_z", "xyzt_units", "dim"):
        assert np.array_equal(before.header[field], after.header[field]), field
    assert np.array_equal(before.header.get_qform(), after.header.get_qform())
    one, other = SimpleITK.ReadImage(str(path)), SimpleITK.ReadImage(str(out))
    for get in ("GetSpacing", "GetOrigin", "GetDirection", "GetSize"):
        assert getattr(one, get)() == getattr(other, get)()
    np.testing.assert_allclose(other.GetSpacing(), SPACING)
    assert np.array_equal(SimpleITK.GetArrayFromImage(other).T, label)


def test_a_written_label_reads_back_on_the_same_grid(write_scan: WriteScan, array: np.ndarray) -> None:
    affine = np.array([[0, -1.5, 0, 9], [1.25, 0, 0, -8], [0, 0, 6, 7], [0, 0, 0, 1]])
    scan = read_image(write_scan("a.nii.gz", array, affine=affine))
    label = np.ones(array.shape, np.uint8)
    back = read_label(written(scan, label), structures={"RV": 1})
    check_same_grid(scan, back, case_id="c7")
    assert np.array_equal(back.affine, scan.affine)


def test_equal_labels_give_equal_bytes(write_scan: WriteScan, array: np.ndarray) -> None:
    scan = read_image(write_scan("a.nii.gz", array))
    label = np.ones(array.shape, np.uint8)
    assert written(scan, label).read_bytes() == written(scan, label).read_bytes()


def test_a_label_of_another_shape_type_or_name_is_not_written(write_scan: WriteScan, array: np.ndarray) -> None:
    scan = read_image(write_scan("a.nii.gz", array))
    with pytest.raises(ValueError, match=r"shape \(7, 6, 5\) is needed, got uint8 \(5, 6, 7\)"):
        write_label(scan.path.with_name("b.nii.gz"), np.zeros((5, 6, 7), np.uint8), like=scan)
    with pytest.raises(ValueError, match="got float32"):
        write_label(scan.path.with_name("b.nii.gz"), np.zeros((7, 6, 5), np.float32), like=scan)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match=r"written as .nii.gz"):
        write_label(scan.path.with_name("b.nii"), np.zeros((7, 6, 5), np.uint8), like=scan)
    assert sorted(path.name for path in scan.path.parent.iterdir()) == ["a.nii.gz"]


# Real files.


def test_a_real_acdc_patient_has_its_true_spacing_and_a_label_on_its_grid(
    acdc_raw: Path, structures: dict[str, int], tmp_path: Path
) -> None:
    folder = acdc_raw / "training" / "patient001"
    with pytest.warns(AcdcSpacingWarning):
        image = read_image(folder / "patient001_frame01.nii.gz")
    label = read_label(folder / "patient001_frame01_gt.nii.gz", structures=structures)
    check_same_grid(image, label, case_id="patient001_frame01")
    assert image.spacing_mm == (1.5625, 1.5625, 10.0)
    assert np.array_equal(image.array, nib.load(image.path).get_fdata(dtype=np.float32))
    write_label(tmp_path / "out.nii.gz", label.array, like=image)
    assert np.array_equal(nib.load(tmp_path / "out.nii.gz").get_fdata(), label.array)
    assert np.array_equal(nib.load(tmp_path / "out.nii.gz").affine, nib.load(image.path).affine)


def test_a_real_cine_is_refused_with_the_way_out(acdc_raw: Path) -> None:
    with pytest.raises(CaseError, match=r"4-D, with 12 frames.*pick one frame"):
        read_image(acdc_raw / "training" / "patient090" / "patient090_4d.nii.gz")


def test_reading_one_scan_gives_no_warning_but_acdcs(acdc_raw: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_image(acdc_raw / "training" / "patient003" / "patient003_frame01.nii.gz")
    assert [each.category for each in caught] == [AcdcSpacingWarning]
