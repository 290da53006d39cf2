import numpy as np
import pytest
import SimpleITK
from scipy import ndimage

from data_prep import read_aorta
from data_prep.aorta import MIRROR_PAIRS, STRUCTURES
from data_prep.phantoms.aorta.aorta_phantom import main, write_aorta_phantom
from data_prep.phantoms.aorta.aorta_scanner import draw_grid
from data_prep.phantoms.aorta.aorta_tree import aorta_truth, draw_tree, subject_generator
from data_prep.phantoms.aorta.aorta_tubes import draw_tube, join, label_of
from uumamba.data.scan import check_same_grid, read_image, read_label
from uumamba.evaluation.baselines import IntensityThreshold, MeanShapeAtlas
from uumamba.runtime.errors import UsageError

SPACING_MM = 3


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two subjects."""
    return write_aorta_phantom(tmp_path_factory.mktemp("aorta"), cases=2)


@pytest.fixture(scope="module")
def scans(raw):
    cases = read_aorta(raw)[0].cases
    return [(read_image(case.image), read_label(case.label, structures=STRUCTURES)) for case in cases]


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def coarse_label(number):
    """A subject's label at the spacing that small networks are trained at, without the image."""
    rng = subject_generator(number, 0)
    tree = draw_tree(rng)
    grid = draw_grid(tree, rng)
    tubes = [draw_tube(vessel, grid) for vessel in tree.vessels]
    return label_of(tree, tubes, join(tubes, grid.shape))[1::SPACING_MM, 1::SPACING_MM, 1::SPACING_MM]


def mean_dice(prediction, label):
    """Over the 23 structures, each of which every subject has."""
    found, true = (np.bincount(which.ravel(), minlength=24)[1:] for which in (prediction, label))
    both = np.bincount(label[prediction == label], minlength=24)[1:]
    return np.mean(2 * both / (found + true))


def middle(label, value):
    """Centroid of a structure in voxels."""
    box = ndimage.find_objects(label, max_label=23)[value - 1]
    return np.argwhere(label[box] == value).mean(axis=0) + [side.start for side in box]


def test_the_phantom_is_read_as_aortaseg24_without_an_error(raw):
    manifest, errors = read_aorta(raw)

    assert errors == []
    assert [case.case_id for case in manifest.cases] == ["subject001", "subject002"]
    assert sorted(contents(raw)) == [
        *(f"images/subject{number:03d}_CTA.mha" for number in (1, 2)),
        *(f"masks/subject{number:03d}_label.mha" for number in (1, 2)),
    ]


def test_files_are_compressed_one_millimetre_scans_in_the_types_of_the_challenge(raw):
    for folder, pixel in ((raw / "images", SimpleITK.sitkInt16), (raw / "masks", SimpleITK.sitkUInt8)):
        for file in folder.iterdir():
            volume = SimpleITK.ReadImage(file)
            assert volume.GetPixelID() == pixel
            assert volume.GetSpacing() == (1, 1, 1)
            assert volume.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
            assert b"CompressedData = True" in file.read_bytes()[:1000]


def test_image_and_label_share_a_grid_and_hold_what_they_should(scans):
    for image, label in scans:
        check_same_grid(image, label, case_id="phantom")
        assert -1024 <= image.array.min() < -900
        assert 600 < image.array.max() <= 1500
        assert np.unique(label.array).tolist() == [0, *STRUCTURES.values()]
        assert 110 <= image.array.shape[0] <= 210
        assert 100 <= image.array.shape[1] <= 190
        assert 350 <= image.array.shape[2] <= 500


def test_no_vessel_touches_the_border(scans):
    for _, label in scans:
        for axis in range(3):
            assert not label.array.take([0, 1, -2, -1], axis).any()


def test_world_coordinates_of_labels_are_those_of_the_truth(scans):
    for number, (_, label) in enumerate(scans, start=1):
        truth = aorta_truth(number)
        for name, value in STRUCTURES.items():
            points = truth.segments[name].points_mm[len(truth.segments[name].points_mm) // 2 : -2]
            voxels = (np.linalg.inv(label.affine) @ np.c_[points, np.ones(len(points))].T)[:3]
            assert np.mean(label.array[tuple(np.rint(voxels).astype(int))] == value) > 0.9, name


def test_structures_of_the_right_lie_on_the_patients_right(scans):
    for _, label in scans:
        for right, left in MIRROR_PAIRS:
            x_right, x_left = (
                (label.affine @ [*middle(label.array, STRUCTURES[name]), 1])[0] for name in (right, left)
            )
            # RAS+: x grows from the patient's left to the right.
            assert x_right > x_left + 10, right


def test_the_image_shows_which_side_is_which(scans):
    for image, label in scans:
        to_ras = image.affine
        assert to_ras[0, 0] < 0  # stored from right to left
        aorta, _, celiac_height = middle(label.array, STRUCTURES["Celiac"]).astype(int)
        level = image.array[:, :, celiac_height + 10]
        halves = level[: aorta - 25], level[aorta + 25 :]
        # The liver fills the right half; stomach, spleen and fat share the left one.
        liver, others = (np.mean((half > 30) & (half < 140)) for half in halves)
        assert liver > others


def test_the_lumen_is_bright_and_a_wall_stands_round_it(scans):
    for image, label in scans:
        arch = image.array[np.isin(label.array, [STRUCTURES[name] for name in ("Zone1", "Zone2", "LCC")])]
        assert 170 < np.median(arch) < 520
        assert np.percentile(arch, 10) > 80


def test_a_dissected_aorta_has_two_enhancements_within_its_zones(scans):
    image, label = scans[0]
    assert aorta_truth(1).dissected
    below, above = (
        image.array[np.isin(label.array, [STRUCTURES[name] for name in names])]
        for names in (("Zone4", "Zone5"), ("Zone1", "LCC"))
    )

    # The flap and blurred borders fill less than a quarter; a third is the darker lumen's.
    assert np.percentile(below, 30) < 0.7 * np.median(above)


def test_an_atlas_of_six_subjects_stays_under_dice_04_on_others():
    labels = {number: coarse_label(number) for number in range(1, 10)}
    training = [labels[number] for number in range(1, 7)]
    atlas = MeanShapeAtlas(scales=(1.0,), smoothings=(2.0,), search_cases=3).fit(training, training)
    dice = [mean_dice(atlas.predict(labels[number]), labels[number]) for number in range(7, 10)]

    # One that finds nothing would pass for the wrong reason.
    assert 0.03 < np.mean(dice) < 0.4


@pytest.mark.slow
def test_neither_baseline_reaches_dice_04_on_held_out_subjects(tmp_path):
    # Sixteen subjects are written and 24 parameter settings searched for each of 23 structures: about three minutes.
    raw = write_aorta_phantom(tmp_path, cases=16)
    every = (slice(None, None, SPACING_MM),) * 3
    prepared = []
    for case in read_aorta(raw)[0].cases:
        image = read_image(case.image).array.T[every].astype(np.float32)
        label = read_label(case.label, structures=STRUCTURES).array.T[every]
        prepared.append((np.clip(image, -200, 600), label))
    training, held_out = prepared[:11], prepared[11:]

    for baseline in (MeanShapeAtlas(), IntensityThreshold(smoothings=(0.0,), search_cases=6)):
        baseline.fit([image for image, _ in training], [label for _, label in training])
        dice = np.mean([mean_dice(baseline.predict(image), label) for image, label in held_out])
        assert 0.03 < dice < 0.4, type(baseline).__name__


def test_equal_seeds_give_equal_bytes_and_a_subject_does_not_depend_on_the_others(raw, tmp_path):
    alone = contents(write_aorta_phantom(tmp_path, cases=1))
    among_others = contents(raw)

    assert len(alone) == 2
    assert alone == {name: among_others[name] for name in alone}


@pytest.mark.slow
def test_workers_change_no_byte_and_progress_counts_subjects(raw, tmp_path):
    seen = []

    write_aorta_phantom(tmp_path, cases=2, workers=2, progress=lambda written, of: seen.append((written, of)))

    assert seen == [(1, 2), (2, 2)]
    assert contents(tmp_path) == contents(raw)


def test_numbers_have_gaps_and_thirty_cases_are_for_training(tmp_path, monkeypatch):
    orders = []
    monkeypatch.setattr("data_prep.phantoms.aorta.aorta_phantom._write_subject", orders.append)

    write_aorta_phantom(tmp_path, cases=50)
    numbers = [order.number for order in orders]

    assert len(numbers) == 50
    assert numbers != list(range(1, 51))
    assert sum(number <= 40 for number in numbers) == 34


@pytest.mark.parametrize("wrong", [{"cases": 0}, {"workers": -1}])
def test_counts_below_one_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match="The aorta phantom needs at least one case and no negative number, got"):
        write_aorta_phantom(tmp_path, **wrong)

    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_subjects_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "subject047_label.mha").touch()

    with pytest.raises(UsageError, match=r"already holds subject047_label.mha and perhaps more; give the phantom an"):
        write_aorta_phantom(tmp_path, cases=2)

    assert not (tmp_path / "images").exists()


def test_a_folder_beneath_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(UsageError, match=r"file, which is no folder"):
        write_aorta_phantom(tmp_path / "file" / "phantom", cases=1)


def test_the_shell_says_what_is_wrong_and_shows_an_example(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--cases", "0"])
    assert "needs at least one case" in capsys.readouterr().err

    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "example:\n    python -m data_prep.phantoms.aorta /tmp/aorta --cases 30" in capsys.readouterr().out
