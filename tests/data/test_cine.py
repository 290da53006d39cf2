"""Cines of every format: frames, times, and the rules of still scans for each frame."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from tests.data.conftest import WriteScan
from tests.pipelines.run_files import Refused
from uumamba.data.cine import Cine, is_cine, read_cine, write_cine_label
from uumamba.data.scan import read_image
from uumamba.runtime.errors import CaseError

SHAPE = (9, 8, 5)


def make_frames(count: int = 6, dtype: Any = np.int16) -> np.ndarray:
    """Voxels of a cine, the frame as last axis."""
    return np.random.default_rng(0).integers(1, 900, (*SHAPE, count)).astype(dtype)


def save_nrrd(path: Path, frames: np.ndarray, *, first: bool, kind: str = "list") -> Path:
    """Write an NRRD file with the frame as first axis, as 3D Slicer does, or as last."""
    vectors, names = ["(-1.5,0,0)", "(0,-1.5,0)", "(0,0,8)"], ["domain"] * 3
    place = 0 if first else 3
    vectors.insert(place, "none")
    names.insert(place, kind)
    stored = np.moveaxis(frames, -1, place)
    lines = [
        "NRRD0004", "type: int16", "dimension: 4", "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, stored.shape))}", f"space directions: {' '.join(vectors)}",
        f"kinds: {' '.join(names)}", "endian: little", "encoding: raw", "space origin: (0,0,0)", "", "",
    ]  # fmt: skip
    path.write_bytes("\n".join(lines).encode() + stored.astype("<i2").tobytes(order="F"))
    return path


def save_metaimage(path: Path, frames: np.ndarray, *, step: float) -> Path:
    """Write a MetaImage file by ITK."""
    image = SimpleITK.JoinSeries(
        [SimpleITK.GetImageFromArray(frame.transpose(2, 1, 0)) for frame in np.moveaxis(frames, -1, 0)], 0.0, step
    )
    image.SetSpacing((1.5, 1.5, 8.0, step))
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    return path


def test_every_format_gives_the_frames_of_its_still_scans(tmp_path: Path, write_scan: WriteScan) -> None:
    frames = make_frames()
    files = [
        write_scan("a.nii.gz", frames),
        write_scan("b.nii.gz", frames[..., None]),
        save_metaimage(tmp_path / "c.mha", frames, step=40.0),
        save_nrrd(tmp_path / "d.nrrd", frames, first=True),
        save_nrrd(tmp_path / "e.nrrd", frames, first=False),
    ]
    for path in files:
        assert is_cine(path), path
        cine = read_cine(path)
        assert len(cine.frames) == 6
        for index, scan in enumerate(cine.frames):
            assert scan.array.dtype == np.float32
            assert np.array_equal(scan.array, frames[..., index]), (path, index)
            assert scan.spacing_mm == pytest.approx((1.5, 1.5, 8.0))


def test_a_frame_of_the_real_cine_equals_the_still_scan_of_acdc(acdc_raw: Path) -> None:
    patient = acdc_raw / "training" / "patient090"
    with pytest.warns(UserWarning, match="taken from pixdim"):
        cine = read_cine(patient / "patient090_4d.nii.gz")
    for number in (4, 11):
        still, frame = read_image(patient / f"patient090_frame{number:02d}.nii.gz"), cine.frames[number - 1]
        assert np.array_equal(still.array, frame.array)
        assert np.array_equal(still.affine, frame.affine)
        assert (still.spacing_mm, cine.times_ms) == (frame.spacing_mm, None)


@pytest.mark.parametrize(
    ("step", "unit", "expected"),
    [
        (0.03, "sec", 30.0), (30.0, "msec", 30.0), (30_000.0, "usec", 30.0), (30.0, "unknown", 30.0),
        (0.03, "unknown", 30.0), (1.0, "unknown", None), (30.0, "sec", None), (0.0, "msec", None),
        (np.nan, "msec", None), (30.0, "hz", None),
    ],
)  # fmt: skip
def test_times_are_known_only_if_the_step_is_plausible(
    tmp_path: Path, step: float, unit: str, expected: float | None
) -> None:
    image = nib.Nifti1Image(make_frames(), np.diag([1.5, 1.5, 8.0, 1.0]))
    image.header.set_xyzt_units("mm", unit)
    image.header["pixdim"][4] = step
    nib.save(image, tmp_path / "a.nii.gz")
    times = read_cine(tmp_path / "a.nii.gz").times_ms
    assert times == (None if expected is None else pytest.approx([expected * index for index in range(6)]))


def test_the_step_of_a_metaimage_has_no_unit_and_is_taken_where_plausible(tmp_path: Path) -> None:
    known = read_cine(save_metaimage(tmp_path / "a.mha", make_frames(), step=40.0))
    assert known.times_ms == (0.0, 40.0, 80.0, 120.0, 160.0, 200.0)
    assert read_cine(save_metaimage(tmp_path / "b.mha", make_frames(), step=1.0)).times_ms is None


def test_still_scans_and_other_files_are_no_cines(tmp_path: Path, write_scan: WriteScan) -> None:
    (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
    still = write_scan("one.nii.gz", make_frames(1))
    vectors = write_scan("vectors.nii.gz", make_frames(3)[:, :, :, None])
    colours = save_nrrd(tmp_path / "colours.nrrd", make_frames(3), first=True, kind="RGB-color")
    for path in (still, vectors, colours, tmp_path / "broken.nii.gz", tmp_path / "absent.nii.gz", tmp_path):
        assert not is_cine(path), path
    with pytest.warns(UserWarning, match=r"is read as \(9, 8, 5\)"):
        assert len(read_cine(still).frames) == 1
    for path in (vectors, colours):
        with pytest.raises(CaseError, match="expected one 3-D volume of scalars"):
            read_image(path)
    with pytest.raises(CaseError, match="expected one 3-D volume of scalars"):
        read_cine(vectors)


def test_a_faulty_frame_is_named(write_scan: WriteScan, refused: Refused) -> None:
    frames = make_frames(dtype=np.float32)
    frames[..., 2] = np.nan
    path = write_scan("a.nii.gz", frames)
    with refused("frame 3 of 6: image", case_id="heart"):
        read_cine(path, case_id="heart")


def test_the_limit_of_memory_holds_for_all_frames(write_scan: WriteScan) -> None:
    path = write_scan("a.nii.gz", make_frames())
    assert read_cine(path, max_bytes=4 * 6 * 360).frames
    with pytest.raises(CaseError, match=r"file: got 0\.0 GiB"):
        read_cine(path, max_bytes=4 * 6 * 360 - 1)


def test_a_cut_off_cine_is_refused(tmp_path: Path, refused: Refused) -> None:
    for path in (save_nrrd(tmp_path / "a.nrrd", make_frames(), first=False),):
        path.write_bytes(path.read_bytes()[:-2])
        with refused("file", case_id="a.nrrd"):
            read_cine(path)


def test_an_assumed_spacing_holds_for_all_frames(tmp_path: Path) -> None:
    path = save_nrrd(tmp_path / "a.nrrd", make_frames(), first=True)
    path.write_bytes(path.read_bytes().replace(b"(0,0,8)", b"(0,0,0.001)"))
    with pytest.raises(CaseError, match="too small"):
        read_cine(path)
    with pytest.warns(UserWarning, match="the assumed 1.5 x 1.5 x 8 mm"):
        cine = read_cine(path, assume_spacing_mm=(1.5, 1.5, 8.0))
    assert {scan.spacing_mm for scan in cine.frames} == {(1.5, 1.5, 8.0)}


def test_a_label_map_of_all_frames_has_the_header_of_the_cine(tmp_path: Path, write_scan: WriteScan) -> None:
    frames = make_frames()
    path = write_scan("a.nii.gz", frames, acdc=True, toffset=0.5, xyzt_units=10)
    stored: Any = nib.load(path)
    stored.header["pixdim"][4] = 0.035
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), None, stored.header), path)
    with pytest.warns(UserWarning, match="taken from pixdim"):
        cine = read_cine(path)
    labels = [np.full(SHAPE, index % 3, np.uint8) for index in range(6)]
    write_cine_label(tmp_path / "label.nii.gz", labels, cine, structures={"LV": 500, "RV": 3})
    image, written = nib.load(path), nib.load(tmp_path / "label.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), np.stack([np.array([0, 3, 500])[each] for each in labels], -1))
    for name in ("dim", "pixdim", "xyzt_units", "toffset", "qform_code", "sform_code", "srow_x", "srow_y", "srow_z"):
        assert np.array_equal(written.header[name], image.header[name]), name


def test_a_label_map_of_a_cine_of_another_format_has_its_affine_and_step(tmp_path: Path) -> None:
    cine = read_cine(save_metaimage(tmp_path / "a.mha", make_frames(), step=40.0))
    write_cine_label(tmp_path / "label.nii.gz", [np.zeros(SHAPE, np.uint8)] * 6, cine)
    written = nib.load(tmp_path / "label.nii.gz")
    np.testing.assert_allclose(written.affine, cine.frames[0].affine, atol=1e-5)
    assert written.shape == (*SHAPE, 6)
    assert (written.header["pixdim"][4], written.header.get_xyzt_units()) == (40.0, ("mm", "msec"))


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
def test_itk_and_our_reader_find_each_frame_of_a_label_map_in_place(tmp_path: Path, suffix: str) -> None:
    cine = read_cine(save_metaimage(tmp_path / "a.mha", make_frames(), step=40.0))
    labels = [np.random.default_rng(index).integers(0, 3, SHAPE).astype(np.uint8) for index in range(6)]
    path = tmp_path / f"label{suffix}"
    write_cine_label(path, labels, cine, structures={"LV": 500, "RV": 3})
    expected = np.array([0, 3, 500])[np.stack(labels)]
    again = read_cine(path)
    assert np.array_equal(np.stack([frame.array for frame in again.frames]), expected)
    np.testing.assert_allclose(again.frames[0].affine, cine.frames[0].affine, atol=1e-9)
    image = SimpleITK.ReadImage(str(path))
    if suffix == ".mha":
        assert image.GetSpacing() == (1.5, 1.5, 8.0, 40.0)
        assert np.array_equal(SimpleITK.GetArrayFromImage(image).transpose(0, 3, 2, 1), expected)


def test_label_maps_of_another_number_of_frames_are_refused(tmp_path: Path, refused: Refused) -> None:
    cine = Cine(read_cine(save_metaimage(tmp_path / "a.mha", make_frames(), step=40.0)).frames)
    with refused("labels", got="5 of shape (9, 8, 5)"):
        write_cine_label(tmp_path / "label.nii.gz", [np.zeros(SHAPE, np.uint8)] * 5, cine)
    with refused("path", got="label.seg.nrrd"):
        write_cine_label(tmp_path / "label.seg.nrrd", [np.zeros(SHAPE, np.uint8)] * 6, cine)
