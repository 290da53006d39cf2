"""Label maps lie on the anatomy, however a scan is stored."""

from collections.abc import Callable, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from nibabel.orientations import apply_orientation, inv_ornt_aff
from numpy.typing import NDArray
from pydicom import dcmread

from uumamba.pipelines import load_predictor
from uumamba.pipelines.predict import predict

pytestmark = pytest.mark.filterwarnings("ignore::uumamba.pipelines.prediction.segmented_case.UnusualCaseWarning")

STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}


def find_centroids_mm(image: Any) -> dict[str, NDArray[np.float64]]:
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
    first = find_centroids_mm(nib.load(written[0]))
    half_voxel_mm = min(frame.header.get_zooms()) / 2
    for path in written:
        scan: Any = nib.load(tmp_path / path.name)
        label: Any = nib.load(path)
        assert np.array_equal(label.affine, scan.affine)
        for name, centroid in find_centroids_mm(label).items():
            assert np.abs(centroid - first[name]).max() < half_voxel_mm, (path.name, name)


def save_by_itk(files: Sequence[str], path: Path) -> Path:
    """Save a series that SimpleITK reads as NIfTI, which SimpleITK writes."""
    SimpleITK.WriteImage(SimpleITK.ReadImage(files), path)
    return path


def list_slices_of_phases(folder: Path) -> list[list[str]]:
    """List the files of each phase of a study of Sunnybrook, along the normal of its slices."""
    headers = [dcmread(file, stop_before_pixels=True) for file in folder.iterdir()]
    along = np.cross(*np.reshape([float(each) for each in headers[0].ImageOrientationPatient], (2, 3)))
    headers.sort(key=lambda header: along @ np.array(header.ImagePositionPatient, dtype=float))
    phases = sorted({(header.InstanceNumber - 1) % 20 for header in headers})
    return [[each.filename for each in headers if (each.InstanceNumber - 1) % 20 == phase] for phase in phases]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::uumamba.data.warn.ScanWarning")
@pytest.mark.parametrize(
    "study", ["totalsegmentator/example_ct_dicom", "sunnybrook/dicoms/SCD0000101", "sunnybrook/dicoms/SCD0000301"]
)
def test_each_structure_of_dicom_lies_where_it_is_in_simpleitks_nifti(
    find_real: Callable[[str], Path], tiny_run: Path, tmp_path: Path, study: str
) -> None:
    folder = find_real(study)
    if "sunnybrook" in study:
        model, frames = Path("acdc"), list_slices_of_phases(folder)
    else:  # the shipped model need not find hearts in a CT
        model, frames = tiny_run, [[*SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))]]
    stills = [save_by_itk(files, tmp_path / f"frame{index}.nii.gz") for index, files in enumerate(frames)]
    written, *by_itk = predict(model, [folder, *stills], out=tmp_path / "out", mirror=False, progress=False).written
    label: Any = nib.load(written)
    values = np.asarray(label.dataobj)
    for index, path in enumerate(by_itk):
        other: Any = nib.load(path)
        assert np.abs(label.affine - other.affine).max() < 1e-3
        alone = nib.Nifti1Image(values if len(frames) == 1 else values[..., index], label.affine)
        found, expected = find_centroids_mm(alone), find_centroids_mm(other)
        half_voxel_mm = min(other.header.get_zooms()) / 2
        for name, centroid in found.items():
            assert np.abs(centroid - expected[name]).max() < half_voxel_mm, (path.name, name)
