"""NIfTI headers: types, scaling, matrices, ACDC's spacing, repairs and faults."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from uumamba.data.scan import AcdcSpacingWarning, Scan, ScanWarning, read_image, write_label

WriteScan = Callable[..., Path]
Make = Callable[[WriteScan, np.ndarray], Path]
SPACING = (1.5625, 1.40625, 10.0)


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 200, (7, 6, 5)).astype(np.int16)


def edit_header(path: Path, **fields: Any) -> Path:
    """Overwrite header fields without a check."""
    is_packed = path.name.endswith(".gz")
    stored = gzip.decompress(path.read_bytes()) if is_packed else path.read_bytes()
    header = nib.Nifti1Header(stored[:348], check=False)
    for field, value in fields.items():
        header[field] = value
    edited = header.binaryblock + stored[348:]
    path.write_bytes(gzip.compress(edited) if is_packed else edited)
    return path


def test_a_label_map_is_not_scaled_by_its_scans_slope(write_scan: WriteScan, array: np.ndarray) -> None:
    path = edit_header(write_scan("a.nii.gz", array), scl_slope=2.0, scl_inter=1.0)
    label = (array % 4).astype(np.uint8)
    write_label(path.with_name("out.nii.gz"), label, like=read_image(path))
    assert np.array_equal(np.asarray(nib.load(path.with_name("out.nii.gz")).dataobj), label)


# Files that are read.


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", ">i2", "float32", "float64"])
def test_every_real_dtype_is_read_exactly(write_scan: WriteScan, array: np.ndarray, name: str, dtype: str) -> None:
    path = write_scan(name, array.astype(dtype), spacing_mm=SPACING)
    scan, kept = read_image(path), read_image(path, keep_integers=True)
    # nibabel writes in native byte order
    assert kept.array.dtype == (np.float32 if "f" in dtype else np.dtype(dtype).newbyteorder("="))
    assert np.array_equal(scan.array, array)
    assert np.array_equal(kept.array, array)
    assert np.array_equal(scan.affine, np.diag([*SPACING, 1]))
    assert (scan.array.dtype, scan.spacing_mm) == (np.float32, SPACING)


@pytest.mark.parametrize(
    ("slope", "intercept", "kept"),
    [
        (0.0, 0.0, "uint16"),
        (np.nan, np.nan, "uint16"),
        (1, -1024.0, "int16"),
        (1, -1024.5, "float32"),
        (1, 60000.0, "float32"),
        (2.5, -7.0, "float32"),
    ],
)
def test_slope_and_intercept_are_applied_like_nibabel_and_keep_integers_if_possible(
    write_scan: WriteScan, array: np.ndarray, slope: float, intercept: float, kept: str
) -> None:
    path = edit_header(write_scan("a.nii.gz", array.astype(np.uint16)), scl_slope=slope, scl_inter=intercept)
    scan = read_image(path, keep_integers=True)
    assert scan.array.dtype == np.dtype(kept)
    np.testing.assert_allclose(scan.array, nib.load(path).get_fdata(), rtol=1e-6)


def test_extensions_gzip_members_and_nifti_2_are_read(tmp_path: Path, array: np.ndarray) -> None:
    path = tmp_path / "a.nii.gz"
    for length in (24, 50_000):
        image = nib.Nifti1Image(array, np.diag([*SPACING, 1]))
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * length))
        nib.save(image, path)
        scan = read_image(path)
        assert np.array_equal(scan.array, array)
        write_label(tmp_path / "b.nii.gz", np.ones(array.shape, np.uint8), scan)
        assert (np.asarray(nib.load(tmp_path / "b.nii.gz").dataobj) == 1).all()
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(
        gzip.compress(whole[:100]) + bytes(600) + gzip.compress(b"") + gzip.compress(whole[100:]) + bytes(9)
    )
    assert np.array_equal(read_image(path).array, array)
    nib.save(nib.Nifti2Image(array, np.diag([*SPACING, 1])), path)
    assert np.array_equal(read_image(path).array, array)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1), (4, 4)])
def test_qform_or_sform_or_both_give_the_affine(tmp_path: Path, array: np.ndarray, codes: tuple[int, int]) -> None:
    affine = np.array([[0, 1.5, 0, 9], [1.25, 0, 0, -8], [0, 0, 6, 7], [0, 0, 0, 1]])  # rotated and mirrored
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, code=codes[0])
    image.set_sform(affine if codes[1] else None, code=codes[1])
    nib.save(image, tmp_path / "a.nii.gz")
    scan = read_image(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(scan.affine, affine, atol=1e-5)
    np.testing.assert_allclose(scan.spacing_mm, (1.25, 1.5, 6))


def test_acdcs_spacing_is_pixdim_with_one_warning_per_process(write_scan: WriteScan, array: np.ndarray) -> None:
    path = write_scan("a.nii.gz", array, spacing_mm=SPACING, acdc=True)
    with pytest.warns(AcdcSpacingWarning) as caught:
        first, second = read_image(path), read_image(path)
    assert len(caught) == 1
    assert first.spacing_mm == second.spacing_mm == SPACING
    assert np.array_equal(first.affine, np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1]))
    assert read_image(write_scan("a.nii.gz", array, spacing_mm=(1, 1, 1), acdc=True)).spacing_mm == (1, 1, 1)


# Files that are repaired.


def read_repaired(path: Path) -> Scan:
    with pytest.warns(ScanWarning, match=r"^c7: ") as caught:
        scan = read_image(path, case_id="c7")
    assert len(caught) == 1
    return scan


@pytest.mark.parametrize(("written", "named"), [("a.nii", "a.nii.gz"), ("a.nii.gz", "a.nii")])
def test_a_wrong_suffix_is_repaired(write_scan: WriteScan, array: np.ndarray, written: str, named: str) -> None:
    path = write_scan(written, array)
    assert np.array_equal(read_repaired(path.rename(path.with_name(named))).array, array)


@pytest.mark.parametrize(("stored", "read"), [((7, 6), (7, 6, 1)), ((7, 6, 5, 1), (7, 6, 5))])
def test_scans_get_three_axes_and_written_labels_those_of_the_file(
    write_scan: WriteScan, stored: tuple[int, ...], read: tuple[int, ...]
) -> None:
    path = write_scan("a.nii.gz", np.ones(stored, np.int16))
    scan = read_repaired(path) if len(stored) == 4 else read_image(path)
    assert scan.array.shape == read
    write_label(path.with_name("label.nii.gz"), np.zeros(read, np.uint8), like=scan)
    assert nib.load(path.with_name("label.nii.gz")).shape == stored


@pytest.mark.parametrize(("code", "millimetres"), [(1, 1000.0), (3, 0.001)])
def test_metres_and_microns_are_converted(
    write_scan: WriteScan, array: np.ndarray, code: int, millimetres: float
) -> None:
    path = write_scan("a.nii.gz", array, spacing_mm=tuple(mm / millimetres for mm in SPACING))
    scan = read_repaired(edit_header(path, xyzt_units=code))
    np.testing.assert_allclose(scan.spacing_mm, SPACING, rtol=1e-6)
    np.testing.assert_allclose(np.diag(scan.affine)[:3], SPACING, rtol=1e-6)


def test_axes_up_to_1_degree_off_are_made_orthogonal_and_up_to_0_02_accepted(
    write_scan: WriteScan, array: np.ndarray
) -> None:
    read_image(shear(0.01)(write_scan, array))
    scan = read_repaired(shear(0.5)(write_scan, array))
    axes = scan.affine[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.diag(np.square(scan.spacing_mm)), atol=1e-6)


def body() -> np.ndarray:
    """Make air of 1 around a body of 100."""
    voxels = np.ones((20, 20, 8))
    voxels[6:14, 6:14] = 100
    return voxels


def test_nan_in_air_becomes_the_smallest_value_and_huge_values_are_clipped(
    write_scan: WriteScan,
) -> None:
    changed = body()
    changed[0, 0, 0], changed[19, 19, 7] = np.nan, np.inf
    assert np.array_equal(read_repaired(write_scan("a.nii.gz", changed)).array, body())
    changed[:], changed[2, 2, 2] = body(), 1e300
    assert read_repaired(write_scan("a.nii.gz", changed)).array.max() == np.finfo(np.float32).max


# Files that are refused, by the key of the error.


def rewrite(change: Callable[[bytes], bytes]) -> Make:
    def make(write_scan: WriteScan, array: np.ndarray) -> Path:
        path = write_scan("a.nii.gz", array)
        path.write_bytes(change(path.read_bytes()))
        return path

    return make


def unreadable(write_scan: WriteScan, array: np.ndarray) -> Path:
    """Make an unreadable file: this process's memory at address 0."""
    path = write_scan("a.nii", array)
    path.unlink()
    path.symlink_to("/proc/self/mem")
    return path


def edit_field(name: str = "a.nii.gz", **fields: Any) -> Make:
    return lambda write_scan, array: edit_header(write_scan(name, array), **fields)


def edit_acdc(**fields: Any) -> Make:
    spacing_mm = (1.05, 1.05, 1.05)
    return lambda write_scan, array: edit_header(
        write_scan("a.nii.gz", array, spacing_mm=spacing_mm, acdc=True), **fields
    )


def store(changed: np.ndarray) -> Make:
    return lambda write_scan, array: write_scan("a.nii.gz", changed)


def nan_at(*index: Any) -> Make:
    changed = body()
    changed[index] = np.nan
    return store(changed)


def shear(degrees: float) -> Make:
    affine = np.diag([1.5, 1.5, 8.0, 1.0])
    affine[:2, 1] = 1.5 * np.sin(np.radians(degrees)), 1.5 * np.cos(np.radians(degrees))
    return lambda write_scan, array: write_scan("a.nii.gz", array, affine=affine)


def dim(*sizes: int) -> tuple[int, ...]:
    return (*sizes, *[1] * (8 - len(sizes)))


REFUSED: dict[str, tuple[Make, str, Any]] = {
    "wrong checksum": (rewrite(lambda stored: stored[:-6] + bytes([stored[-6] ^ 1]) + stored[-5:]), "file", None),
    "more voxels in the header": (edit_field(dim=dim(3, 7, 6, 50)), "file", "a.nii.gz with 772 bytes"),
    "more voxels in a plain file": (edit_field("a.nii", dim=dim(3, 7, 6, 50)), "file", "a.nii with 772 bytes"),
    "bomb": (rewrite(lambda stored: gzip.compress(gzip.decompress(stored) + bytes(2**21))), "file", None),
    "unreadable": (unreadable, "file", "a.nii (Input/output error)"),
    "wrong magic": (edit_field(magic=b"ni1"), "file", "the magic b'ni1'"),
    "nan offset": (edit_field(vox_offset=np.nan), "file", None),
    "huge sizes": (edit_field(dim=dim(3, 32767, 32767, 32767)), "file", "131060.0 GiB"),
    "negative size": (edit_field(dim=dim(3, 7, -6, 5)), "shape", list(dim(3, 7, -6, 5))),
    "no axes": (edit_field(dim=dim(0, 7, 6, 5)), "shape", list(dim(0, 7, 6, 5))),
    "cine": (store(np.ones((4, 4, 4, 12))), "shape", (4, 4, 4, 12)),
    "unknown type": (edit_field(datatype=3), "dtype", "the unknown code 3"),
    "colours": (store(np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])), "dtype", None),
    "complex": (store(np.ones((4, 4, 4), np.complex64)), "dtype", np.dtype(np.complex64)),
    "zero pixdim": (edit_field(pixdim=dim(1, 0, 2, 8)), "spacing_mm", "0 x 2 x 8 (missing or not positive)"),
    "nan pixdim": (
        edit_field(pixdim=(1, np.nan, 1.5, 8, 1, 1, 1, 1)),
        "spacing_mm",
        "nan x 1.5 x 8 (missing or not positive)",
    ),
    "other pixdim": (edit_field(pixdim=(1, 1.5, 1.5, 5, 1, 1, 1, 1)), "spacing_mm", "1.5 x 1.5 x 5"),
    "other sform of acdc": (edit_acdc(srow_x=(-2, 0, 0, 0)), "spacing_mm", "1.05 x 1.05 x 1.05"),
    # Rotated by 180 degrees about z like the sform, and within half a voxel of it over 7 voxels.
    "coded qform beside acdc's": (edit_acdc(qform_code=1, quatern_d=1.0), "spacing_mm", "1.05 x 1.05 x 1.05"),
    "sform against qform": (
        edit_field(qform_code=1, quatern_d=1.0),
        "affine",
        "a distance of 12.0 voxels between sform and qform",
    ),
    "no rotation": (edit_field(sform_code=0, qform_code=1, quatern_b=1.0, quatern_c=1.0), "affine", None),
    "no codes": (edit_field(sform_code=0, qform_code=0), "affine", "sform_code 0, qform_code 0"),
    "nan affine": (edit_field(srow_x=(np.nan, 0, 0, 0)), "affine", None),
    "collapsed affine": (edit_field(srow_x=(0, 0, 0, 0)), "affine", None),
    "sheared by 5 degrees": (shear(5), "affine", "a deviation of 5.0 degrees from right angles between the axes"),
    "infinite slope": (edit_field(scl_slope=np.inf), "image", None),
    "negative slope": (edit_field(scl_slope=-1.0), "image", "a slope of -1.0 and an intercept of 0.0"),
    "metres as millimetres": (
        edit_field(
            pixdim=(1, 0.0015, 0.0015, 0.008, 1, 1, 1, 1),
            srow_x=(0.0015, 0, 0, 0),
            srow_y=(0, 0.0015, 0, 0),
            srow_z=(0, 0, 0.008, 0),
        ),
        "spacing_mm",
        "0.0015 x 0.0015 x 0.008 (too small)",
    ),
    "nan in too much air": (nan_at(slice(4), slice(None), 0), "image", "2.50% NaN or infinite voxels"),
    "nan in the body": (nan_at(slice(9, 11), slice(9, 11), 0), "image", "0.12% NaN or infinite voxels"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_fault_is_refused_with_its_key(write_scan: WriteScan, array: np.ndarray, fault: str, refused: Any) -> None:
    make, key, got = REFUSED[fault]
    path = make(write_scan, array)
    with refused(key, case_id="c7") as error:
        read_image(path, case_id="c7")
    assert got in (None, error.value.got)
    assert error.value.fix


@pytest.mark.filterwarnings("ignore:c7. its unit of length is 1000 mm")
def test_millimetres_declared_as_metres_are_refused(write_scan: WriteScan, array: np.ndarray, refused: Any) -> None:
    path = edit_header(write_scan("a.nii.gz", array), xyzt_units=1)
    with refused("spacing_mm", got="1500 x 1500 x 8000 (an axis of 40000 mm)", case_id="c7"):
        read_image(path, case_id="c7")
