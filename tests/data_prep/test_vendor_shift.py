"""A shifted copy of ACDC: labels and headers byte for byte, other voxels."""

import gzip
import os

import nibabel as nib
import numpy as np
import pytest

from data_prep.acdc import read_acdc
from data_prep.vendor_shift import main, write_vendor_shift
from tests.data_prep.raw_layouts import file_bytes
from uumamba.data.shifted_scan import write_shifted
from uumamba.data.vendor_styles import STYLES, shift_style

HEADER_BYTES = 352


def save(path, array, spacing_mm=(1.5, 1.5, 10.0)):
    """ACDC's own header: unit sform, qform_code 0, the true spacing in pixdim."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.diag([-1.0, -1.0, 1.0, 1.0]))
    image.header["pixdim"][1:4] = spacing_mm
    image.header["qform_code"], image.header["sform_code"] = 0, 2
    nib.save(image, path)


@pytest.fixture
def raw(tmp_path):
    """Two patients of ACDC with stored types as there, one with a cine."""
    generator = np.random.default_rng(0)
    for number, dtype in enumerate((np.int16, np.uint8), start=1):
        folder = tmp_path / "raw" / "training" / f"patient00{number}"
        for frame in ("01", "07"):
            name = f"patient00{number}_frame{frame}"
            image = heart_like(generator).astype(dtype)
            save(folder / f"{name}.nii.gz", image)
            save(folder / f"{name}_gt.nii.gz", (image > 100).astype(np.uint8) * 3)
        (folder / "Info.cfg").write_text("ED: 1\nES: 7\nGroup: NOR\n")
    save(folder / "patient002_4d.nii.gz", np.zeros((4, 4, 2, 8), np.int16)[..., 0])
    return tmp_path / "raw"


def heart_like(generator):
    y, x = np.mgrid[-1:1:24j, -1:1:20j]
    heart = 40 + 185 * (x**2 + y**2 < 0.3)
    return heart[..., None] + generator.integers(0, 30, (24, 20, 5))


def content(path):
    return gzip.decompress(path.read_bytes())


@pytest.mark.parametrize("style", STYLES)
def test_a_copy_differs_in_the_voxels_of_its_images_alone(raw, tmp_path, style):
    before = file_bytes(raw)
    assert write_vendor_shift(raw, tmp_path / "out", style) == []

    assert file_bytes(raw) == before
    copied = file_bytes(tmp_path / "out")
    images = {case.image.relative_to(raw).as_posix() for case in read_acdc(raw)[0].cases}
    assert len(images) == 4
    assert copied.keys() == {path for path in before if not path.endswith("_4d.nii.gz")}
    assert all(copied[path] == before[path] for path in copied.keys() - images)
    for path in images:
        old, new = content(raw / path), content(tmp_path / "out" / path)
        assert new[:HEADER_BYTES] == old[:HEADER_BYTES]
        assert len(new) == len(old)
        assert new != old


def test_the_copy_is_read_as_acdc_with_equal_bytes_for_equal_seeds(raw, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_vendor_shift(raw, tmp_path / name, "fast_scan", seed=seed)
    listed = [[(case.case_id, case.fold, case.group) for case in read_acdc(x)[0].cases] for x in (raw, tmp_path / "a")]

    assert listed[0] == listed[1]
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b")
    assert file_bytes(tmp_path / "a") != file_bytes(tmp_path / "c")
    image = (tmp_path / "a/training/patient001/patient001_frame01.nii.gz").read_bytes()
    assert image[4:8] == bytes(4)  # gzip's time of writing


def test_without_strength_every_voxel_is_copied(raw, tmp_path):
    write_vendor_shift(raw, tmp_path / "out", "fast_scan", strength=0.0)
    for case in read_acdc(raw)[0].cases:
        assert content(tmp_path / "out" / case.image.relative_to(raw)) == content(case.image)


def test_integers_are_rounded_and_stay_in_the_range_of_their_type(raw, tmp_path):
    source = raw / "training/patient002/patient002_frame01.nii.gz"
    write_shifted(source, tmp_path / "shifted.nii.gz", "fast_scan", case_id="a")
    stored, shifted = (np.asarray(nib.load(path).dataobj) for path in (source, tmp_path / "shifted.nii.gz"))
    expected = shift_style(stored, "fast_scan", case_id="a", spacing_mm=(1.5, 1.5, 10.0))

    assert shifted.dtype == np.uint8
    assert expected.max() > 255  # or clipping would not be tested
    np.testing.assert_array_equal(shifted, np.clip(np.rint(expected), 0, 255))


def test_a_real_image_keeps_its_header_and_its_label_its_bytes(acdc_raw, tmp_path):
    patient = acdc_raw / "training" / "patient001"
    folder = tmp_path / "raw" / "training"
    folder.mkdir(parents=True)
    (folder / "patient001").symlink_to(patient)

    assert write_vendor_shift(tmp_path / "raw", tmp_path / "out", "coarse_matrix") == []

    for frame in ("01", "12"):
        name = f"patient001_frame{frame}"
        copy = tmp_path / "out/training/patient001"
        assert (copy / f"{name}_gt.nii.gz").read_bytes() == (patient / f"{name}_gt.nii.gz").read_bytes()
        old, new = content(patient / f"{name}.nii.gz"), content(copy / f"{name}.nii.gz")
        assert (old[:HEADER_BYTES], len(old)) == (new[:HEADER_BYTES], len(new))
        assert old != new


def test_a_damaged_image_is_reported_and_the_others_are_written(raw, tmp_path):
    (raw / "training/patient001/patient001_frame07.nii.gz").write_bytes(b"")

    errors = write_vendor_shift(raw, tmp_path / "out", "dark_blood")

    assert [error.case_id for error in errors] == ["patient001_frame07"]
    assert len(read_acdc(tmp_path / "out")[0].cases) == 3


@pytest.mark.parametrize(("key", "got"), [("style", "siemens"), ("strength", 2.0), ("out", "raw/out")])
def test_a_wrong_use_is_refused_before_anything_is_written(raw, tmp_path, refused, key, got):
    arguments = {"style": "dark_blood", "out": "out", key: got}
    arguments["out"] = tmp_path / arguments["out"]
    with refused(key, got=arguments[key]):
        write_vendor_shift(raw, **arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]
    assert not (raw / "out").exists()


def test_the_command_ends_with_the_exit_code_of_its_outcome(raw, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main([str(raw), out, "--style", "dark_blood"]) == 0
    assert capsys.readouterr().out == "images: 4 of 4\n"
    assert main([str(raw), out, "--style", "dark_blood", "--strength", "2"]) == 2
    assert capsys.readouterr().err.startswith("strength: got 2.0")


@pytest.mark.parametrize(
    ("spoil", "left_out"),
    [
        (lambda patient: (patient / "patient001_frame01_gt.nii.gz").unlink(), ["01"]),
        (lambda patient: (patient / "Info.cfg").write_text("ED: 1\nGroup: NOR\n"), ["01", "07"]),
        (
            lambda patient: os.truncate(patient / "patient001_frame01.nii.gz", 900),
            ["01"],
        ),
    ],
)
def test_no_image_of_a_faulty_case_is_copied_in_the_old_style_or_kept_from_another_call(raw, tmp_path, spoil, left_out):
    out = tmp_path / "out"
    assert write_vendor_shift(raw, out, "dark_blood") == []
    spoil(raw / "training" / "patient001")
    assert write_vendor_shift(raw, out, "fast_scan") != []
    assert not [frame for frame in left_out if list(out.rglob(f"patient001_frame{frame}.nii.gz"))]
    assert len(list(out.rglob("*_frame??.nii.gz"))) == 4 - len(left_out)
