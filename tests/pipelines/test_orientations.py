"""Label maps lie on the anatomy, however a scan is stored."""

from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray

from uumamba.pipelines import load_predictor
from uumamba.pipelines.predict import predict

STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}


def find_centroids_mm(path: Path) -> dict[str, NDArray[np.float64]]:
    image: Any = nib.load(path)
    label = np.asarray(image.dataobj)
    return {
        name: nib.affines.apply_affine(image.affine, np.argwhere(label == value).mean(axis=0))
        for name, value in STRUCTURES.items()
    }


def store(image: Any, axes: tuple[int, ...], flips: tuple[int, ...], path: Path) -> None:
    """Store an image with permuted and flipped axes at the same place in the world."""
    change = np.array(list(zip(axes, flips, strict=True)))
    array = apply_orientation(np.asarray(image.dataobj), change)
    affine = image.affine @ inv_ornt_aff(change, image.shape)
    stored = nib.Nifti1Image(array, affine)
    stored.set_qform(affine, 1)
    stored.set_sform(affine, 1)
    nib.save(stored, path)


@pytest.mark.slow
def test_each_structure_lies_at_one_place_for_all_48_orientations(tiny_raw: Path, tmp_path: Path) -> None:
    frame: Any = nib.load(sorted(tiny_raw.rglob("patient001_frame0?.nii.gz"))[0])
    tilted = np.diag([*frame.header.get_zooms(), 1.0])
    tilted[:3, 3] = (-31.0, 17.0, 5.0)
    upright: Any = nib.Nifti1Image(np.asarray(frame.dataobj), tilted)
    orders = [*product(permutations(range(3)), product((1, -1), repeat=3))]
    for number, (axes, flips) in enumerate(orders):
        store(upright, axes, flips, tmp_path / f"scan_{number:02d}.nii.gz")
    assert len(load_predictor("acdc").structures or {}) == len(STRUCTURES)
    written = predict("acdc", [tmp_path], out=tmp_path / "out", mirror=False, progress=False).written
    assert len(written) == len(orders) == 48
    first = find_centroids_mm(written[0])
    half_voxel_mm = min(frame.header.get_zooms()) / 2
    for path in written:
        scan: Any = nib.load(tmp_path / path.name)
        label: Any = nib.load(path)
        assert np.array_equal(label.affine, scan.affine)
        for name, centroid in find_centroids_mm(path).items():
            assert np.abs(centroid - first[name]).max() < half_voxel_mm, (path.name, name)
