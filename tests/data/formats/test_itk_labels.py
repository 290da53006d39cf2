"""Label maps for ITK's programs: grids, values and segments, read by SimpleITK."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from uumamba.data.grid import Scan
from uumamba.data.scan import LABEL_SUFFIXES, read_label, write_label

SPACING = (1.25, 2.5, 8.125)
ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
STRUCTURES = {"RV": 1, "left \\ventricle": 700}


def make_scan(order: tuple[int, ...], signs: tuple[int, ...]) -> Scan:
    """Scan of 4 x 5 x 6 voxels with an axis order and signs."""
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(order)] * np.array(signs) * SPACING
    affine[:3, 3] = (-11.5, 7.25, 1 / 3)
    return Scan(np.zeros((4, 5, 6), np.float32), affine, SPACING, None, Path("scan"))


def make_label() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.uint8)


@pytest.mark.parametrize("suffix", LABEL_SUFFIXES)
def test_itk_reads_a_label_map_of_each_orientation_on_the_grid_of_its_scan(suffix: str, tmp_path: Path) -> None:
    label, path = make_label(), tmp_path / f"label{suffix}"
    assert len(ORIENTATIONS) == 48
    colours = dict.fromkeys(STRUCTURES, "#0072B2")
    for order, signs in ORIENTATIONS:
        scan = make_scan(order, signs)
        write_label(path, label, scan, structures=STRUCTURES, colours=colours)
        image = SimpleITK.ReadImage(path)
        assert image.GetPixelIDTypeAsString() == "16-bit unsigned integer"
        assert np.array_equal(SimpleITK.GetArrayFromImage(image).T, np.array([0, 1, 700])[label])
        for corner in product((0, 3), (0, 4), (0, 5)):
            ras_mm = np.array(image.TransformIndexToPhysicalPoint(corner)) * (-1, -1, 1)
            assert np.abs(ras_mm - (scan.affine @ (*corner, 1))[:3]).max() < 1e-4
        own = read_label(path, structures=STRUCTURES)
        assert np.abs(own.affine - scan.affine).max() < 1e-5


def test_a_segmentation_of_3d_slicer_names_and_colours_its_segments(tmp_path: Path) -> None:
    path, scan = tmp_path / "a.seg.nrrd", make_scan((0, 1, 2), (1, 1, 1))
    write_label(
        path, make_label(), scan, structures=STRUCTURES, colours={"RV": "#0000ff", "left \\ventricle": "#ff8000"}
    )
    image = SimpleITK.ReadImage(path)
    found = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert [found[f"Segment{index}_Name"] for index in (0, 1)] == [*STRUCTURES]
    assert [found[f"Segment{index}_LabelValue"] for index in (0, 1)] == ["1", "700"]
    assert [float(level) for level in found["Segment1_Color"].split()] == pytest.approx([1, 128 / 255, 0], abs=1e-5)
    assert found["Segment1_Extent"] == "0 3 0 4 0 5"


@pytest.mark.parametrize("suffix", LABEL_SUFFIXES)
def test_equal_labels_give_equal_compressed_bytes(suffix: str, tmp_path: Path) -> None:
    scan = Scan(np.zeros((64, 64, 9), np.float32), np.eye(4), (1.0, 1.0, 1.0), None, Path("scan"))
    label = np.zeros(scan.shape, np.uint8)
    paths = [tmp_path / f"{name}{suffix}" for name in "ab"]
    for path in paths:
        write_label(path, label, scan)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].stat().st_size < label.nbytes / 10
