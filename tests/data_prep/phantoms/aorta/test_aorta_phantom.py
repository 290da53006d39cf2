import numpy as np
import pytest
import SimpleITK

from data_prep import read_aorta
from data_prep.aorta import STRUCTURES
from data_prep.phantoms.aorta.aorta_phantom import write_aorta_phantom
from tests.data_prep.phantoms.aorta.aorta_truth import compute_aorta_truth
from uumamba.data.scan import read_case


@pytest.fixture(scope="module")
def scans(aorta_raw):
    return [read_case(case, structures=STRUCTURES) for case in read_aorta(aorta_raw)[0].cases]


def test_numbers_have_gaps_and_34_cases_are_for_training(tmp_path, orders):
    write_aorta_phantom(tmp_path, cases=50)
    numbers = [order.number for order in orders]
    assert len(numbers) == 50 < numbers[-1]
    assert sum(number <= 40 for number in numbers) == 34


def test_files_are_compressed_one_millimetre_scans_in_the_types_of_the_challenge(aorta_raw):
    for folder, pixel in ((aorta_raw / "images", SimpleITK.sitkInt16), (aorta_raw / "masks", SimpleITK.sitkUInt8)):
        for file in folder.iterdir():
            volume = SimpleITK.ReadImage(file)
            assert (volume.GetPixelID(), volume.GetSpacing()) == (pixel, (1, 1, 1))
            assert volume.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
            assert b"CompressedData = True" in file.read_bytes()[:1000]


def test_images_have_the_range_and_size_of_a_trunk(scans):
    for image, label in scans:
        assert -1024 <= image.array.min() < -900 < 600 < image.array.max() <= 1500
        assert np.all(np.abs(np.array(image.array.shape) - (160, 145, 425)) <= (50, 45, 75))
        assert not any(label.array.take([1, -2], axis).any() for axis in range(3))


def test_world_coordinates_of_labels_agree_with_the_ground_truth(scans):
    for number, (_, label) in enumerate(scans, start=1):
        truth = compute_aorta_truth(number)
        for name, value in STRUCTURES.items():
            points = truth.segments[name].points_mm[len(truth.segments[name].points_mm) // 2 : -2]
            voxels = (np.linalg.inv(label.affine) @ np.c_[points, np.ones(len(points))].T)[:3]
            assert np.mean(label.array[tuple(np.rint(voxels).astype(int))] == value) > 0.9, name


def test_the_liver_is_on_the_patients_right(scans):
    for image, label in scans:
        assert label.affine[0, 0] < 0  # stored from right to left
        aorta, _, celiac_height = np.argwhere(label.array == STRUCTURES["Celiac"]).mean(axis=0).astype(int)
        level = image.array[:, :, celiac_height + 10]
        # The liver fills the right half; stomach, spleen and fat share the left one.
        liver, others = (np.mean((half > 30) & (half < 140)) for half in (level[: aorta - 25], level[aorta + 25 :]))
        assert liver > others


def test_the_lumen_is_bright_and_a_dissected_aorta_has_two_enhancements(scans):
    assert compute_aorta_truth(1).dissected
    for number, (image, label) in enumerate(scans, start=1):
        arch = image.array[np.isin(label.array, [STRUCTURES[name] for name in ("Zone1", "Zone2", "LCC")])]
        assert 170 < np.median(arch) < 520
        assert np.percentile(arch, 10) > 80
        below = image.array[np.isin(label.array, [STRUCTURES[name] for name in ("Zone4", "Zone5")])]
        # The flap and blurred borders fill less than a quarter; a third is the darker lumen's.
        assert not compute_aorta_truth(number).dissected or np.percentile(below, 30) < 0.7 * np.median(arch)
