import gzip
from collections import Counter, defaultdict

import nibabel as nib
import numpy as np
import pytest

from data_prep import read_acdc, write_phantom
from data_prep.phantoms.heart.heart_phantom import GROUPS
from uumamba.evaluation.baselines import IntensityThreshold, MeanShapeAtlas
from uumamba.runtime.errors import UsageError

SIZE_FIELDS = {"dim", "pixdim", "datatype", "bitpix"}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def label_of(case):
    return np.asarray(nib.load(case.label).dataobj)


def prepared(case):
    """Image and label as the networks see them: through-plane axis first, image of mean 0 and deviation 1."""
    image = np.asarray(nib.load(case.image).dataobj, dtype=np.float32).transpose(2, 1, 0)
    return (image - image.mean()) / image.std(), label_of(case).transpose(2, 1, 0)


def test_the_phantom_is_read_as_acdc_without_an_error(phantom):
    manifest, errors = read_acdc(phantom)

    assert errors == []
    assert Counter(case.split for case in manifest.cases) == {"training": 40, "test": 2}
    assert Counter(case.group for case in manifest.select(split="training")) == dict.fromkeys(GROUPS, 8)
    assert {case.patient_id for case in manifest.select(split="test")} == {"patient021"}


def test_files_and_info_are_named_as_acdc_names_them(phantom, real_acdc):
    patient = phantom / "training" / "patient001"
    real = (real_acdc / "training" / "patient001" / "Info.cfg").read_text(encoding="utf-8")
    info = (patient / "Info.cfg").read_bytes().decode()
    values = dict(line.split(": ") for line in info.splitlines())
    stems = {f"patient001_frame{int(values[phase]):02d}" for phase in ("ED", "ES")}

    assert list(values) == [line.partition(":")[0] for line in real.splitlines()]
    assert "\r" not in info
    assert info.endswith("\n")
    expected = {"Info.cfg"} | {f"{stem}{end}" for stem in stems for end in (".nii.gz", "_gt.nii.gz")}
    assert {path.name for path in patient.iterdir()} == expected


@pytest.mark.parametrize("end", ["", "_gt"])
def test_every_header_field_equals_acdcs_but_for_size_spacing_and_type(phantom, real_acdc, end):
    real = nib.load(real_acdc / "training" / "patient001" / f"patient001_frame01{end}.nii.gz").header
    paths = [path for path in (phantom / "training").rglob("*.nii.gz") if path.stem.endswith("_gt.nii") == bool(end)]

    assert len(paths) == 40
    for path in paths:
        header = nib.load(path).header
        for field in set(header.keys()) - SIZE_FIELDS:
            np.testing.assert_array_equal(header[field], real[field], err_msg=f"{path.name}: {field}")
        np.testing.assert_array_equal(header["pixdim"][[0, 4, 5, 6, 7]], real["pixdim"][[0, 4, 5, 6, 7]])
        np.testing.assert_array_equal(header["dim"][[0, 4, 5, 6, 7]], real["dim"][[0, 4, 5, 6, 7]])


def test_the_stored_header_bytes_equal_acdcs_in_all_other_places(phantom, real_acdc):
    def head(path):
        with gzip.open(path) as stream:
            return bytearray(stream.read(352))

    ours = head(next((phantom / "training" / "patient001").glob("*_gt.nii.gz")))
    real = head(real_acdc / "training" / "patient001" / "patient001_frame01_gt.nii.gz")
    # dim[1:4] and pixdim[1:4], the only fields that a label may have of its own.
    for start, stop in ((42, 48), (80, 92)):
        ours[start:stop] = real[start:stop] = bytes(stop - start)

    assert ours == real


def test_spacing_stands_in_pixdim_alone(phantom):
    for path in (phantom / "training").rglob("*.nii.gz"):
        scan = nib.load(path)
        x, y, z = scan.header.get_zooms()
        np.testing.assert_array_equal(scan.affine, np.diag([-1.0, -1, 1, 1]))
        assert x == y
        assert 1.2 <= x <= 1.9
        assert 5 <= z <= 10
        assert min(scan.shape[:2]) >= 110
        assert max(scan.shape[:2]) <= 160
        assert 6 <= scan.shape[2] <= 12


def test_image_types_mix_and_labels_are_bytes(phantom):
    manifest, _ = read_acdc(phantom)

    assert {str(nib.load(case.image).get_data_dtype()) for case in manifest.cases} == {"float32", "int16", "uint8"}
    assert {str(nib.load(case.label).get_data_dtype()) for case in manifest.cases} == {"uint8"}


def test_end_diastole_is_not_always_frame_01(phantom):
    manifest, _ = read_acdc(phantom)
    first = [case.case_id.endswith("frame01") for case in manifest.cases if case.phase == "ED"]

    assert 0 < sum(first) < len(first)


def test_every_label_has_all_structures_clear_of_the_border(phantom):
    for case in read_acdc(phantom)[0].cases:
        label = label_of(case)
        assert set(np.unique(label)) == {0, 1, 2, 3}, case.case_id
        assert not label[[0, -1]].any(), case.case_id
        assert not label[:, [0, -1]].any(), case.case_id


def test_ejection_fractions_are_near_those_of_acdcs_diagnoses(phantom):
    volumes, of_group = {}, defaultdict(set)
    for case in read_acdc(phantom)[0].select(split="training"):
        volumes[case.patient_id, case.phase] = np.count_nonzero(label_of(case) == 3)
        of_group[case.group].add(case.patient_id)
    means = {
        group: np.mean([100 * (1 - volumes[patient, "ES"] / volumes[patient, "ED"]) for patient in patients])
        for group, patients in of_group.items()
    }

    # Patients differ by about 7 points within a group, so the mean of four has a standard error of 3.5.
    assert means == pytest.approx({"DCM": 20, "MINF": 31, "RV": 56, "NOR": 62, "HCM": 70}, abs=7)


def test_hearts_lie_all_over_the_field_of_view_and_differ_in_size(phantom):
    centres, volumes = [], []
    for case in read_acdc(phantom)[0].cases:
        label = label_of(case)
        centres.append(np.argwhere(label > 0).mean(axis=0)[:2] / label.shape[:2])
        volumes.append(np.count_nonzero(label) * np.prod(nib.load(case.label).header.get_zooms()))

    assert np.ptp(centres, axis=0).min() > 0.2
    assert max(volumes) / min(volumes) > 2


def test_an_atlas_and_a_threshold_stay_under_dice_06_on_held_out_patients(phantom):
    manifest, _ = read_acdc(phantom)
    training = [prepared(case) for case in manifest.cases if case.fold in (2, 3, 4)]
    held_out = [prepared(case) for case in manifest.cases if case.fold in (0, 1)]
    assert (len(training), len(held_out)) == (24, 16)

    for baseline in (MeanShapeAtlas(), IntensityThreshold()):
        baseline.fit([image for image, _ in training], [label for _, label in training])
        dice = [
            2
            * np.sum((prediction == value) & (label == value))
            / (np.sum(prediction == value) + np.sum(label == value))
            for image, label in held_out
            for prediction in [baseline.predict(image)]
            for value in (1, 2, 3)
        ]
        # A baseline that finds nothing would pass for the wrong reason.
        assert 0.05 < np.mean(dice) < 0.6, type(baseline).__name__


def test_equal_seeds_give_equal_bytes_and_a_patient_does_not_depend_on_the_others(phantom, tmp_path):
    alone = contents(write_phantom(tmp_path, patients=1))
    among_others = contents(phantom)

    assert len(alone) == 5
    assert alone == {name: among_others[name] for name in alone}


def test_files_hold_no_time_of_writing(phantom):
    for path in (phantom / "training" / "patient001").glob("*.nii.gz"):
        no_name_flag, modification_time = path.read_bytes()[3], path.read_bytes()[4:8]
        assert (no_name_flag, modification_time) == (0, bytes(4))


def test_another_seed_gives_other_patients(phantom, tmp_path):
    other = contents(write_phantom(tmp_path, patients=1, seed=1))
    same_names = set(other) & set(contents(phantom))

    assert all(other[name] != contents(phantom)[name] for name in same_names)


@pytest.mark.slow
def test_workers_change_no_byte_and_progress_counts_patients(phantom, tmp_path):
    seen = []

    write_phantom(tmp_path, patients=2, workers=2, progress=lambda written, of: seen.append((written, of)))
    among_others = contents(phantom)

    assert seen == [(1, 2), (2, 2)]
    assert contents(tmp_path) == {name: among_others[name] for name in contents(tmp_path)}


@pytest.mark.parametrize("wrong", [{"patients": 0}, {"test_patients": -1}, {"workers": -1}])
def test_counts_below_one_are_refused(tmp_path, wrong):
    with pytest.raises(
        UsageError, match="The phantom needs at least one patient and no negative number, got patients="
    ):
        write_phantom(tmp_path, **wrong)

    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_patients_is_refused_before_anything_is_written(tmp_path):
    (tmp_path / "training" / "patient007").mkdir(parents=True)

    with pytest.raises(
        UsageError, match=r"already holds patient007 and perhaps more; give the phantom an empty folder"
    ):
        write_phantom(tmp_path, patients=2)

    assert len(list(tmp_path.rglob("*"))) == 2


def test_a_folder_beneath_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(UsageError, match=r"file, which is no folder"):
        write_phantom(tmp_path / "file" / "phantom", patients=1)
