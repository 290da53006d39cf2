import csv
import gzip
import subprocess
import sys
from collections import Counter

import nibabel as nib
import numpy as np
import pytest

from data_prep import read_imagecas
from data_prep.phantoms.coronary.coronary_phantom import SHEET_NAME, coronary_truth, main, write_coronary_phantom
from uumamba.data import read_image, read_label
from uumamba.evaluation.baselines import IntensityThreshold, MeanShapeAtlas
from uumamba.runtime.errors import UsageError


@pytest.fixture(scope="module")
def coronary_phantom(tmp_path_factory):
    """Five cases and one test case."""
    return write_coronary_phantom(tmp_path_factory.mktemp("coronary"), cases=5, test_cases=1)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def voxels(path):
    return np.asarray(nib.load(path).dataobj)


def test_the_phantom_is_read_as_imagecas_without_an_error(coronary_phantom):
    manifest, errors = read_imagecas(coronary_phantom)

    assert errors == []
    assert [case.case_id for case in manifest.cases] == [f"imagecas{number:04d}" for number in range(1, 7)]
    assert [len(manifest.select(fold=fold)) for fold in range(5)] == [1, 1, 1, 1, 1]
    assert [case.case_id for case in manifest.select(split="test")] == ["imagecas0006"]


def test_files_are_named_as_imagecas_names_them(coronary_phantom):
    names = {f"1-200/{number}.{kind}.nii.gz" for number in range(1, 7) for kind in ("img", "label")}

    assert set(contents(coronary_phantom)) == names | {SHEET_NAME}


def test_shards_change_after_200_cases(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("data_prep.phantoms.coronary.coronary_phantom._write_case", written.append)

    write_coronary_phantom(tmp_path, cases=201)

    assert [written[at].folder.name for at in (0, 199, 200)] == ["1-200", "1-200", "201-400"]


def test_each_split_validates_on_another_fifth_and_never_on_a_test_case(tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.phantoms.coronary.coronary_phantom._write_case", lambda order: None)
    write_coronary_phantom(tmp_path, cases=40, test_cases=10)
    rows = list(csv.DictReader((tmp_path / SHEET_NAME).read_text(encoding="utf-8").splitlines()))

    assert list(rows[0]) == ["FileName", "Split-1", "Split-2", "Split-3", "Split-4"]
    assert [int(row["FileName"]) for row in rows] == list(range(1, 51))
    validated = [row["FileName"] for split in range(1, 5) for row in rows if row[f"Split-{split}"] == "Validation"]
    assert len(validated) == len(set(validated)) == 4 * 8
    for split in range(1, 5):
        given = [row[f"Split-{split}"] for row in rows]
        assert Counter(given) == {"Training": 32, "Validation": 8, "Testing": 10}
        assert given[40:] == ["Testing"] * 10


def test_images_are_hounsfield_units_and_labels_bytes_on_one_grid(coronary_phantom):
    for case in read_imagecas(coronary_phantom)[0].cases:
        image, label = nib.load(case.image), nib.load(case.label)
        hu = voxels(case.image)
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        assert image.shape == label.shape
        np.testing.assert_array_equal(image.affine, label.affine)
        assert -1024 <= hu.min() < -900
        assert 500 < hu.max() <= 3071
        assert set(np.unique(voxels(case.label))) == {0, 1}


def test_headers_are_those_of_a_ct_series(coronary_phantom):
    origins = set()
    for case in read_imagecas(coronary_phantom)[0].cases:
        scan = nib.load(case.image)
        assert nib.aff2axcodes(scan.affine) == ("L", "P", "S")
        np.testing.assert_allclose(np.linalg.norm(scan.affine[:3, :3], axis=0), scan.header.get_zooms(), rtol=1e-6)
        np.testing.assert_allclose(scan.get_qform(), scan.get_sform(), atol=1e-3)
        assert (int(scan.header["qform_code"]), int(scan.header["sform_code"])) == (1, 1)
        assert scan.header.get_xyzt_units()[0] == "mm"
        assert np.all(np.array(scan.header.get_zooms()) >= 0.5)
        assert np.all(np.array(scan.header.get_zooms()) <= 0.6)
        origins.add(tuple(scan.affine[:3, 3]))
    assert len(origins) == 6


def test_scans_are_read_without_a_warning(coronary_phantom):
    manifest, _ = read_imagecas(coronary_phantom)
    case = manifest.cases[0]

    image = read_image(case.image)
    label = read_label(case.label, structures=manifest.structures)

    np.testing.assert_array_equal(image.affine, label.affine)


def test_arteries_are_a_small_bright_part_that_other_parts_outshine(coronary_phantom):
    for case in read_imagecas(coronary_phantom)[0].cases:
        hu, label = voxels(case.image), voxels(case.label) == 1
        bright = (hu > np.quantile(hu[label], 0.05)) & (hu < np.quantile(hu[label], 0.95))

        assert 0.001 < label.mean() < 0.02
        assert np.median(hu[label]) > 180
        # Of all voxels as bright as an artery, few belong to one.
        assert np.mean(label[bright]) < 0.25


def test_the_label_keeps_clear_of_the_border(coronary_phantom):
    for case in read_imagecas(coronary_phantom)[0].cases:
        label = voxels(case.label)
        assert all(not np.take(label, [0, -1], axis).any() for axis in range(3)), case.case_id


def test_equal_seeds_give_equal_bytes_and_a_case_does_not_depend_on_the_others(coronary_phantom, tmp_path):
    alone = contents(write_coronary_phantom(tmp_path, cases=1))
    among_others = contents(coronary_phantom)

    assert len(alone) == 3
    assert all(alone[name] == among_others[name] for name in alone if name != SHEET_NAME)


def test_another_seed_gives_other_cases():
    one, other = coronary_truth(1), coronary_truth(1, seed=1)

    assert not np.array_equal(one.affine, other.affine)
    assert one.length_mm != other.length_mm


def test_files_hold_no_time_of_writing(coronary_phantom):
    for path in coronary_phantom.rglob("*.nii.gz"):
        head = path.read_bytes()[:8]
        no_name_flag, modification_time = head[3], head[4:]
        assert (no_name_flag, modification_time) == (0, bytes(4))
        with gzip.open(path) as stream:
            assert len(stream.read(352)) == 352


@pytest.mark.slow  # each of two new processes imports torch
def test_workers_change_no_byte_and_progress_counts_cases(coronary_phantom, tmp_path):
    seen = []

    write_coronary_phantom(tmp_path, cases=2, workers=2, progress=lambda written, of: seen.append((written, of)))
    among_others = contents(coronary_phantom)

    assert seen == [(1, 2), (2, 2)]
    assert all(data == among_others[name] for name, data in contents(tmp_path).items() if name != SHEET_NAME)


@pytest.mark.slow  # fifteen cases are written and searched
def test_an_atlas_and_a_threshold_stay_under_dice_06_on_held_out_cases(tmp_path):
    write_coronary_phantom(tmp_path, cases=15)
    manifest, _ = read_imagecas(tmp_path)

    def arrays(case):
        hu = voxels(case.image).transpose(2, 1, 0).astype(np.float32)
        return (hu - 200) / 250, voxels(case.label).transpose(2, 1, 0)

    training = [arrays(case) for case in manifest.cases if case.fold in (2, 3, 4)]
    held_out = [arrays(case) for case in manifest.cases if case.fold in (0, 1)]
    assert (len(training), len(held_out)) == (9, 6)

    found = {}
    for baseline in (MeanShapeAtlas(), IntensityThreshold()):
        baseline.fit([image for image, _ in training], [label for _, label in training])
        dice = []
        for image, label in held_out:
            prediction = baseline.predict(image) == 1
            dice.append(2 * np.sum(prediction & (label == 1)) / (prediction.sum() + np.sum(label == 1)))
        found[type(baseline).__name__] = float(np.mean(dice))

    # A baseline that finds nothing would pass for the wrong reason.
    assert 0.005 < found["MeanShapeAtlas"] < 0.6, found
    assert 0.005 < found["IntensityThreshold"] < 0.6, found


@pytest.mark.parametrize("wrong", [{"cases": 0}, {"test_cases": -1}, {"workers": -1}])
def test_counts_below_one_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match="The phantom needs at least one case and no negative number, got cases="):
        write_coronary_phantom(tmp_path, **wrong)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("other", ["1-200/7.img.nii.gz", "201-400/201.label.nii.gz", "imageCAS_data_split.xlsx"])
def test_a_folder_with_other_cases_is_refused_before_anything_is_written(tmp_path, other):
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).touch()
    before = contents(tmp_path)

    with pytest.raises(UsageError, match=r"already holds .* and perhaps more; give the phantom an empty folder"):
        write_coronary_phantom(tmp_path, cases=2)

    assert contents(tmp_path) == before


def test_a_folder_beneath_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(UsageError, match=r"file, which is no folder"):
        write_coronary_phantom(tmp_path / "file" / "phantom", cases=1)


def test_the_shell_writes_what_it_is_asked_for(tmp_path, monkeypatch, capsys):
    written = []
    monkeypatch.setattr("data_prep.phantoms.coronary.coronary_phantom._write_case", written.append)

    assert main([str(tmp_path), "--cases", "2", "--seed", "5", "--test-cases", "1"]) == 0

    assert [(order.number, order.seed) for order in written] == [(1, 5), (2, 5), (3, 5)]
    assert capsys.readouterr().out.splitlines()[-1] == "case 3 of 3"


def test_the_shell_says_what_is_wrong_in_one_line(tmp_path, capsys):
    assert main([str(tmp_path), "--cases", "0"]) == 2
    assert capsys.readouterr().err.startswith("The phantom needs at least one case")


@pytest.mark.slow  # a new process imports torch
def test_the_module_runs_and_its_help_has_an_example():
    command = [sys.executable, "-m", "data_prep.phantoms.coronary", "--help"]

    answer = subprocess.run(command, capture_output=True, text=True, check=True)

    assert "Example: python -m data_prep.phantoms.coronary" in answer.stdout
