"""Promises of all phantoms: readable, reproducible, and not trivially solved."""

import numpy as np
import pytest

from data_prep import read_acdc, read_aorta, read_imagecas, write_phantom
from data_prep.phantoms.aorta.__main__ import main as write_aorta
from data_prep.phantoms.aorta.aorta_phantom import write_aorta_phantom
from data_prep.phantoms.coronary.__main__ import main as write_coronary
from data_prep.phantoms.coronary.coronary_phantom import SHEET_NAME, write_coronary_phantom
from tests.data_prep.raw_layouts import file_bytes, read_all
from uumamba.data.scan import read_case
from uumamba.evaluation.baselines import IntensityThreshold, MeanShapeAtlas

WRITERS = {"heart": write_phantom, "coronary": write_coronary_phantom, "aorta": write_aorta_phantom}
READERS = {"heart": read_acdc, "coronary": read_imagecas, "aorta": read_aorta}
CASES = {"heart": "patients", "coronary": "cases", "aorta": "cases"}
STRIDES = {"heart": np.s_[:, ::2, ::2], "coronary": np.s_[::2, ::2, ::2], "aorta": np.s_[::4, ::4, ::4]}


@pytest.fixture(params=WRITERS)
def name(request):
    return request.param


@pytest.fixture
def raw(name, request):
    return request.getfixturevalue(f"{name}_raw")


def test_a_phantom_is_read_without_an_error_and_its_labels_hold_all_structures_inside_the_border(name, raw):
    manifest = read_all(READERS[name], raw)

    for case in manifest.cases:
        image, label = read_case(case, structures=manifest.structures)
        assert np.unique(label.array).tolist() == [0, *manifest.structures.values()]
        plane_axes = (0, 1) if name == "heart" else (0, 1, 2)
        assert not any(label.array.take([0, -1], axis).any() for axis in plane_axes), case.case_id
        assert len(np.unique(image.array)) > 100
    splits = [case.split for case in manifest.cases]
    assert (splits.count("training"), splits.count("test")) == {"heart": (20, 2), "coronary": (4, 1), "aorta": (2, 0)}[
        name
    ]


@pytest.mark.filterwarnings("ignore::uumamba.data.warn.AcdcSpacingWarning")
def test_neither_an_atlas_nor_a_threshold_finds_the_structures_of_other_cases(name, raw):
    manifest, _ = READERS[name](raw)
    cases = []
    for case in manifest.cases:
        image, label = read_case(case, structures=manifest.structures)
        voxels = image.array.T.astype(np.float32)
        cases.append((((voxels - voxels.mean()) / voxels.std())[STRIDES[name]], label.array.T[STRIDES[name]]))
    training = 2 * len(cases) // 3
    for baseline in (MeanShapeAtlas(), IntensityThreshold()):
        baseline.fit([image for image, _ in cases[:training]], [label for _, label in cases[:training]])
        dice = [
            2 * np.sum((found == value) & (label == value)) / (np.sum(found == value) + np.sum(label == value))
            for image, label in cases[training:]
            for found in [baseline.predict(image)]
            for value in manifest.structures.values()
        ]
        # A baseline that finds nothing would pass for the wrong reason.
        assert 0.001 < np.mean(dice) < 0.4, type(baseline).__name__


def test_equal_seeds_give_equal_bytes_for_any_other_cases_and_other_seeds_give_other_bytes(name, raw, tmp_path):
    single, other = (file_bytes(WRITERS[name](tmp_path / f"{seed}", **{CASES[name]: 1}, seed=seed)) for seed in (0, 1))
    several = file_bytes(raw)
    single.pop(SHEET_NAME, None)

    assert len(single) == {"heart": 5, "coronary": 2, "aorta": 2}[name]
    assert single == {path: several[path] for path in single}
    assert all(other[path] != content for path, content in single.items() if path in other)


@pytest.mark.slow  # each of two new processes imports numpy and scipy
def test_workers_change_no_byte_and_progress_counts_cases(heart_raw, tmp_path):
    seen = []

    write_phantom(tmp_path, patients=2, workers=2, progress=lambda written, of: seen.append((written, of)))
    several = file_bytes(heart_raw)

    assert seen == [(1, 2), (2, 2)]
    assert all(data == several[name] for name, data in file_bytes(tmp_path).items())


def test_counts_that_are_too_small_are_refused(name, tmp_path, refused):
    wrong = {CASES[name]: 0, "workers": -1} | ({} if name == "aorta" else {f"test_{CASES[name]}": -1})
    for key, count in wrong.items():
        with refused(key, got=count):
            WRITERS[name](tmp_path, **{key: count})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("heart", "training/patient007"),
        ("coronary", "1-200/7.img.nii.gz"),
        ("coronary", "imageCAS_data_split.xlsx"),
        ("aorta", "masks/subject047_label.mha"),
    ],
)
def test_a_folder_with_other_cases_is_refused_before_anything_is_written(name, other, tmp_path, refused):
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).touch()

    with refused("folder", got=tmp_path / other):
        WRITERS[name](tmp_path, **{CASES[name]: 2})

    assert list(file_bytes(tmp_path)) == [other]


@pytest.mark.parametrize(("name", "main"), [("coronary", write_coronary), ("aorta", write_aorta)])
def test_the_command_writes_the_requested_cases_and_reports_wrong_use(name, main, tmp_path, orders, capsys):
    assert main([str(tmp_path), "--cases", "2", "--seed", "5"]) == 0
    assert [(order.number, order.seed) for order in orders] == [(1, 5), (2, 5)]
    assert capsys.readouterr().out.splitlines() == ["cases: 1 of 2", "cases: 2 of 2"]
    assert main([str(tmp_path), "--cases", "0"]) == 2
    assert capsys.readouterr().err.startswith("cases: got 0")
    if name == "coronary":
        assert main([str(tmp_path), "--cases", "2", "--test-cases", "1"]) == 0
        assert [order.number for order in orders[2:]] == [1, 2, 3]
