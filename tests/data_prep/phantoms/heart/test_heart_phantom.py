import gzip

import nibabel as nib
import numpy as np
import pytest

from data_prep import read_acdc
from data_prep.phantoms.heart.heart_phantom import GROUPS


@pytest.fixture(scope="module")
def scans(heart_raw):
    """Every case with its image and its label."""
    return [(case, nib.load(case.image), nib.load(case.label)) for case in read_acdc(heart_raw)[0].cases]


def test_files_and_info_are_named_as_acdc_names_them(heart_raw, acdc_raw):
    patient = heart_raw / "training" / "patient001"
    real = (acdc_raw / "training" / "patient001" / "Info.cfg").read_text(encoding="utf-8")
    info = (patient / "Info.cfg").read_bytes().decode()
    values = dict(line.split(": ") for line in info.splitlines())
    stems = {f"patient001_frame{int(values[phase]):02d}" for phase in ("ED", "ES")}

    assert list(values) == [line.partition(":")[0] for line in real.splitlines()]
    assert info.endswith("\n")
    assert "\r" not in info
    expected = {"Info.cfg"} | {f"{stem}{end}" for stem in stems for end in (".nii.gz", "_gt.nii.gz")}
    assert {path.name for path in patient.iterdir()} == expected


@pytest.mark.parametrize("end", ["", "_gt"])
def test_the_stored_header_bytes_equal_acdcs_but_for_size_spacing_and_type(heart_raw, acdc_raw, end):
    def head(path):
        stored = bytearray(gzip.decompress(path.read_bytes())[:352])
        for start, stop in ((42, 48), (70, 74), (80, 92)):  # dim[1:4], datatype and bitpix, pixdim[1:4]
            stored[start:stop] = bytes(stop - start)
        return stored

    paths = [path for path in heart_raw.rglob("*.nii.gz") if path.name.endswith("_gt.nii.gz") == bool(end)]
    assert len(paths) == 22
    real = head(acdc_raw / "training" / "patient001" / f"patient001_frame01{end}.nii.gz")
    assert all(head(path) == real for path in paths)


def test_spacing_is_in_pixdim_only_sizes_are_acdcs_and_types_differ(scans):
    for scan in (scan for _, *pair in scans for scan in pair):
        x, y, z = scan.header.get_zooms()
        np.testing.assert_array_equal(scan.affine, np.diag([-1.0, -1, 1, 1]))
        assert 1.2 <= x == y <= 1.9
        assert 5 <= z <= 10
        assert 110 <= min(scan.shape[:2]) <= max(scan.shape[:2]) <= 160
        assert 6 <= scan.shape[2] <= 12
    assert {str(image.get_data_dtype()) for _, image, _ in scans} == {"float32", "int16", "uint8"}
    assert {str(label.get_data_dtype()) for _, _, label in scans} == {"uint8"}
    # End-diastole is not always the first frame.
    assert {case.case_id.endswith("frame01") for case, _, _ in scans if case.phase == "ED"} == {True, False}


def test_each_diagnosis_has_two_patients_with_ejection_fractions_like_acdcs(scans):
    fractions = {group: [] for group in GROUPS}
    volumes = {(case.patient_id, case.phase): np.count_nonzero(label.get_fdata() == 3) for case, _, label in scans}
    for case in (case for case, _, _ in scans if case.split == "training"):
        fractions[case.group].append(100 * (1 - volumes[case.patient_id, "ES"] / volumes[case.patient_id, "ED"]))

    # Patients differ by about 5 points within a group (HABITS), so the mean of two has a standard error of 3.5.
    assert {len(found) for found in fractions.values()} == {4}  # two phases per patient
    means = {group: np.mean(found) for group, found in fractions.items()}
    assert means == pytest.approx({"DCM": 20, "MINF": 31, "RV": 56, "NOR": 62, "HCM": 70}, abs=10)


def test_hearts_differ_in_position_and_size(scans):
    masks = [(np.asarray(label.dataobj) > 0, np.prod(label.header.get_zooms())) for _, _, label in scans]
    centres = [np.argwhere(mask).mean(axis=0)[:2] / mask.shape[:2] for mask, _ in masks]
    volumes = [np.count_nonzero(mask) * voxel for mask, voxel in masks]

    assert np.ptp(centres, axis=0).min() > 0.2
    assert max(volumes) / min(volumes) > 2


def test_files_hold_no_name_and_no_time_of_writing(heart_raw, coronary_raw):
    for path in [*heart_raw.rglob("*.nii.gz"), *coronary_raw.rglob("*.nii.gz")]:
        start = path.read_bytes()[:8]
        assert (start[3], start[4:]) == (0, bytes(4))
