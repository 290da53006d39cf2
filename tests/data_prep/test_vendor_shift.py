"""Style-shifted copy of ACDC: equal labels and headers, other voxels."""

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from data_prep.acdc import read_acdc
from data_prep.vendor_shift import main, write_vendor_shift
from tests.data_prep.raw_layouts import Acdc, draw_image, file_bytes, save_nifti
from uumamba.data.shifted_scan import write_shifted
from uumamba.data.vendor_styles import STYLES, shift_style

HEADER_BYTES = 352


@pytest.fixture
def raw(tmp_path):
    """Write two training patients and a test patient, each with a cine."""
    Acdc().write(tmp_path / "raw", 2)
    return tmp_path / "raw"


def content(path):
    return gzip.decompress(path.read_bytes())


@pytest.mark.parametrize("style", STYLES)
def test_a_copy_differs_in_the_voxels_of_its_images_only(raw, tmp_path, style):
    before, out = file_bytes(raw), tmp_path / "out"
    assert write_vendor_shift(raw, out, style) == []

    assert file_bytes(raw) == before
    copied = file_bytes(out)
    images = {case.image.relative_to(raw).as_posix() for case in read_acdc(raw)[0].cases}
    assert len(images) == 6
    assert copied.keys() == {path for path in before if not path.endswith("_4d.nii.gz")}
    assert all(copied[path] == before[path] for path in copied.keys() - images)
    for old, new in ((content(raw / path), content(out / path)) for path in images):
        assert (new[:HEADER_BYTES], len(new)) == (old[:HEADER_BYTES], len(old))
        assert new != old


def test_the_copy_is_read_as_acdc_with_equal_bytes_for_equal_seeds(raw, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_vendor_shift(raw, tmp_path / name, "fast_scan", seed=seed)
    listed = [[(case.case_id, case.fold, case.group) for case in read_acdc(x)[0].cases] for x in (raw, tmp_path / "a")]

    assert listed[0] == listed[1]
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b") != file_bytes(tmp_path / "c")
    image = (tmp_path / "a/training/patient001/patient001_frame01.nii.gz").read_bytes()
    assert image[4:8] == bytes(4)  # gzip's time of writing


def test_without_strength_every_voxel_is_copied(raw, tmp_path):
    write_vendor_shift(raw, tmp_path / "out", "fast_scan", strength=0.0)
    for case in read_acdc(raw)[0].cases:
        assert content(tmp_path / "out" / case.image.relative_to(raw)) == content(case.image)


def test_integers_are_rounded_and_stay_in_the_range_of_their_type(tmp_path):
    bright = (draw_image(0) // 4 + 128).astype(np.uint8)
    save_nifti(tmp_path / "a.nii.gz", bright)
    write_shifted(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", "fast_scan", case_id="a")
    expected = shift_style(bright, "fast_scan", case_id="a", spacing_mm=(1.25, 1.25, 9.6))

    assert expected.max() > 255  # clipping is tested
    shifted = np.asarray(nib.load(tmp_path / "b.nii.gz").dataobj)
    np.testing.assert_array_equal(shifted, np.clip(np.rint(expected), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("key", "got"), [("style", "siemens"), ("strength", 2.0), ("out", "raw/out")])
def test_a_wrong_use_is_refused_before_anything_is_written(raw, tmp_path, refused, monkeypatch, key, got):
    monkeypatch.chdir(tmp_path)
    before = file_bytes(tmp_path)
    with refused(key, got=Path(got) if key == "out" else got):
        write_vendor_shift(raw, **{"style": "dark_blood", "out": "out", key: got})
    assert file_bytes(tmp_path) == before


def test_the_command_ends_with_the_exit_code_of_its_outcome(raw, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main([str(raw), out, "--style", "dark_blood"]) == 0
    assert capsys.readouterr().out == "images: 6 of 6\n"
    assert main([str(raw), out, "--style", "dark_blood", "--strength", "2"]) == 2
    assert capsys.readouterr().err.startswith("strength: got 2.0")


@pytest.mark.parametrize(
    ("spoil", "left_out"),
    [
        (lambda patient: (patient / "patient001_frame01_gt.nii.gz").unlink(), ["01"]),
        (lambda patient: (patient / "Info.cfg").write_text("ED: 1\nGroup: NOR\n"), ["01", "12"]),
        (lambda patient: os.truncate(patient / "patient001_frame01.nii.gz", 900), ["01"]),
        (lambda patient: (patient / "patient001_frame12.nii.gz").write_bytes(b""), ["12"]),
    ],
)
def test_no_image_of_a_faulty_case_is_copied_or_kept_from_an_earlier_call(raw, tmp_path, spoil, left_out):
    out = tmp_path / "out"
    assert write_vendor_shift(raw, out, "dark_blood") == []
    spoil(raw / "training" / "patient001")
    assert {error.case_id[:10] for error in write_vendor_shift(raw, out, "fast_scan")} == {"patient001"}
    assert not [frame for frame in left_out if list(out.rglob(f"patient001_frame{frame}.nii.gz"))]
    assert len(list(out.rglob("*_frame??.nii.gz"))) == 6 - len(left_out)


def test_each_group_may_have_a_style_of_its_own(raw, tmp_path, capsys):
    cases = read_acdc(raw)[0].cases
    group = cases[0].group
    write_vendor_shift(raw, tmp_path / "mixed", group_styles={group: "dark_blood"})
    write_vendor_shift(raw, tmp_path / "all", "dark_blood")
    for case in cases:
        path = case.image.relative_to(raw)
        expected = tmp_path / "all" / path if case.group == group else case.image
        assert (tmp_path / "mixed" / path).read_bytes() == expected.read_bytes()
    arguments = [str(raw), str(tmp_path / "shell"), "--group-style", f"{group}=dark_blood"]
    assert main(arguments) == 0
    assert file_bytes(tmp_path / "shell") == file_bytes(tmp_path / "mixed")
    with pytest.raises(SystemExit, match="2"):
        main([str(raw), str(tmp_path / "wrong"), "--group-style", f"{group}=sepia"])
    assert "expected GROUP=STYLE" in capsys.readouterr().err


def test_no_style_and_an_unknown_group_are_refused(raw, tmp_path, refused):
    with refused("style", None):
        write_vendor_shift(raw, tmp_path / "out")
    with refused("group_styles", "XYZ"):
        write_vendor_shift(raw, tmp_path / "out", group_styles={"XYZ": "dark_blood"})
    assert not (tmp_path / "out").exists()
