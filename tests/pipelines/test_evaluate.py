"""Scores of label maps: accepted files, vessels and refusals."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from tests.pipelines.run_files import Refused, failed_in, read_json, save_nifti
from uumamba.data.case import Case, Manifest
from uumamba.evaluation import read_scores
from uumamba.pipelines.datasets import read_dataset
from uumamba.pipelines.evaluate import MissingPredictions, evaluate_folder, print_summary
from uumamba.pipelines.report import report
from uumamba.runtime.errors import CaseError, UsageError

STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}
# Voxels of 2 x 2 x 10 mm are 0.04 ml. LV: 500 voxels at ED and 200 at ES are 20 and 8 ml, so the EF is 60 %.
SPACING_MM = (2.0, 2.0, 10.0)
VOXELS = {"ED": {1: 400, 2: 300, 3: 500}, "ES": {1: 300, 2: 300, 3: 200}}


def label_map(phase: str) -> np.ndarray:
    labels = np.zeros((30, 24, 4), np.uint8)
    for value, count in VOXELS[phase].items():
        labels[:, :, value] = np.where(np.arange(30 * 24).reshape(30, 24) < count, value, 0)
    return labels


def save(path: Path, labels: np.ndarray, *, shift_mm: float = 0.0) -> Path:
    affine = np.diag([*SPACING_MM, 1.0])
    affine[0, 3] = shift_mm
    return save_nifti(path, labels, affine)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Patients of folds 0 and 1 at ED and ES."""
    cases = []
    for fold, (patient, group) in enumerate((("p1", "NOR"), ("p2", "DCM"))):
        for phase in ("ED", "ES"):
            case_id = f"{patient}_{phase}"
            label = save(tmp_path / "data" / f"{case_id}_gt.nii.gz", label_map(phase))
            cases.append(Case(case_id, patient, "x", label, label, fold=fold, phase=phase, group=group))
    path = tmp_path / "data" / "dataset.json"
    Manifest("toy", "MR", STRUCTURES, tuple(cases)).write(path)
    return path


@pytest.fixture
def predictions(manifest: Path, tmp_path: Path) -> Path:
    """Folder of perfect predictions, one file per case."""
    for case in Manifest.read(manifest).cases:
        save(tmp_path / "predictions" / f"{case.case_id}.nii.gz", label_map(str(case.phase)))
    return tmp_path / "predictions"


def test_a_manifest_against_itself_scores_one_and_the_files_hold_the_result(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    scores = evaluate_folder(manifest, manifest, out)
    assert len(scores.rows) == 4 * 3
    assert ({row.dice for row in scores.rows}, {row.hd95_mm for row in scores.rows}) == ({1.0}, {0.0})
    assert scores.failures == ()
    assert read_scores(out / "scores.csv") == scores.rows
    assert read_json(out / "summary.json")["foreground_dice"] == 1.0
    assert names_in(out) == {"scores.csv", "summary.json", "patients.csv"}
    with (out / "patients.csv").open() as stream:
        first = next(csv.DictReader(stream))
    assert (first["patient_id"], first["group"]) == ("p1", "NOR")
    assert float(first["lv_edv_ml"]) == pytest.approx(20.0)
    assert float(first["lv_mass_g"]) == pytest.approx(300 * 0.04 * 1.05)
    print_summary(scores)
    printed = capsys.readouterr().out
    assert "4 cases of 2 patients" in printed
    assert "60.0 / 60.0" in printed, "ejection fractions"


def test_a_fold_scores_only_its_own_cases(manifest: Path, predictions: Path, tmp_path: Path) -> None:
    (predictions / "p1_ED.nii.gz").unlink()
    scores = evaluate_folder(predictions, manifest.parent, tmp_path / "out", fold=1, split="training")
    assert {row.patient_id for row in scores.rows} == {"p2"}


def test_missing_predictions_are_named_and_nothing_is_written(
    manifest: Path, predictions: Path, tmp_path: Path
) -> None:
    for name in ("p1_ES", "p2_ED"):
        (predictions / f"{name}.nii.gz").unlink()
    with pytest.raises(MissingPredictions) as error:
        evaluate_folder(predictions, manifest, tmp_path / "out")
    assert (error.value.key, error.value.exit_code) == ("--predictions", 1)
    assert error.value.got == f"{predictions} without p1_ES, p2_ED"
    assert not (tmp_path / "out").exists()


SPOIL: dict[str, Callable[[Path], object]] = {
    "shape": lambda path: save(path, label_map("ES")[:-1]),
    "grid": lambda path: save(path, label_map("ES"), shift_mm=50.0),
    "value": lambda path: save(path, np.full((30, 24, 4), 7, np.uint8)),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:60]),
}


@pytest.mark.parametrize("fault", SPOIL)
def test_a_prediction_that_does_not_fit_fails_without_the_others_until_it_is_corrected(
    fault: str, manifest: Path, predictions: Path, tmp_path: Path
) -> None:
    path, out = predictions / "p1_ES.nii.gz", tmp_path / "out"
    sound = path.read_bytes()
    SPOIL[fault](path)
    scores = evaluate_folder(predictions, manifest, out)
    [failure] = scores.failures
    assert failure.case_id == "p1_ES"
    assert "prediction p1_ES.nii.gz" in failure.key
    assert str(failure).count("Fix: ") == 1
    assert {row.case_id for row in scores.rows} == {"p1_ED", "p2_ED", "p2_ES"}
    fields = {name: getattr(failure, name) for name in ("case_id", "key", "expected", "fix")}
    assert read_json(out / "failures.json") == [fields | {"got": str(failure.got)}]
    if fault == "shape":
        assert failure.got == (29, 24, 4)
    assert read_json(out / "summary.json")["failed"] == ["p1_ES"]
    path.write_bytes(sound)
    evaluate_folder(predictions, manifest, out)
    assert not (out / "failures.json").exists()


def test_a_case_that_failed_before_needs_no_prediction_and_is_listed(
    manifest: Path, predictions: Path, tmp_path: Path
) -> None:
    (predictions / "p1_ES.nii.gz").unlink()
    failed = [CaseError(name, "image", got="cut", expected="whole", fix="restore it") for name in ("p1_ES", "p3_ED")]
    scores = evaluate_folder(predictions, manifest, tmp_path / "out", failed=failed)
    assert [failure.case_id for failure in scores.failures] == ["p1_ES", "p3_ED"]
    assert "p1_ES" not in {row.case_id for row in scores.rows}
    summary = read_json(tmp_path / "out" / "summary.json")
    assert (summary["n_cases"], summary["failed"]) == (3, ["p1_ES", "p3_ED"])
    assert failed_in(tmp_path / "out") == ["p1_ES", "p3_ED"]


def test_when_no_case_can_be_scored_only_the_failures_are_written(
    manifest: Path, predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_folder(predictions, manifest, tmp_path / "out")
    for path in predictions.iterdir():
        path.write_bytes(b"")
    scores = evaluate_folder(predictions, manifest, tmp_path / "out")
    assert (scores.rows, len(scores.failures)) == ((), 4)
    assert names_in(tmp_path / "out") == {"failures.json"}
    print_summary(scores)
    assert "No case could be scored" in capsys.readouterr().out


def test_folders_of_label_maps_are_scored_without_a_clinical_table(
    predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = evaluate_folder(predictions, predictions, tmp_path / "out")
    assert {row.structure for row in scores.rows} == {"label_1", "label_2", "label_3"}
    assert all(row.patient_id == row.case_id and row.phase is None for row in scores.rows)
    assert not (tmp_path / "out" / "patients.csv").exists()
    print_summary(scores)
    assert "The clinical table is left out" in " ".join(capsys.readouterr().out.split())
    named = evaluate_folder(predictions, predictions, tmp_path / "out", structures=STRUCTURES)
    assert [row.structure for row in named.rows[:3]] == ["RV", "MYO", "LV"]


def test_a_value_without_a_name_that_no_prediction_has_may_be_ignored_voxels_and_is_warned_of(tmp_path: Path) -> None:
    label = np.zeros((6, 6, 2), np.uint8)
    label[:2], label[4:] = 1, 9
    for folder, array in (("labels", label), ("predictions", np.where(label == 9, 0, label).astype(np.uint8))):
        save_nifti(tmp_path / folder / "p.nii.gz", array, (1.0, 1.0, 1.0))
    with pytest.warns(UserWarning, match="no prediction has label_9; if it marks ignored voxels"):
        evaluate_folder(tmp_path / "predictions", tmp_path / "labels", tmp_path / "out")


def test_a_fold_of_the_raw_acdc_folder_has_only_its_own_failures(tmp_path: Path) -> None:
    """Write five patients, one per fold, each with an unlabelled frame."""
    raw, predicted = tmp_path / "raw" / "training", tmp_path / "predictions"
    for number in range(1, 6):
        patient = f"patient{number:03d}"
        for name in ("frame01", "frame01_gt", "frame09"):
            save(raw / patient / f"{patient}_{name}.nii.gz", label_map("ED"))
        save(predicted / f"{patient}_frame01.nii.gz", label_map("ED"))
        (raw / patient / "Info.cfg").write_text("ED: 1\nES: 9\nGroup: NOR\n")
    failed = set()
    for fold in range(5):
        scores = evaluate_folder(predicted, tmp_path / "raw", tmp_path / "out", fold=fold)
        ((patient, phase, group),) = {(row.patient_id, row.phase, row.group) for row in scores.rows}
        assert (phase, group) == ("ED", "NOR")
        assert [failure.case_id for failure in scores.failures] == [f"{patient}_frame09"]
        failed.add(patient)
    assert len(failed) == 5


def test_a_case_without_a_label_is_not_scored(manifest: Path, tmp_path: Path) -> None:
    stored = read_json(manifest)
    del stored["training"][0]["label"]
    manifest.write_text(json.dumps(stored))
    scores = evaluate_folder(manifest, manifest, tmp_path / "out")
    assert len({row.case_id for row in scores.rows}) == 3


@pytest.mark.parametrize("labels", ["nowhere", "empty", "raw", "file.txt", "patient001"])
def test_a_path_without_labels_is_refused(labels: str, predictions: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("patient001_frame01", "patient001_frame01_gt"):  # scans beside labels
        save(tmp_path / "patient001" / f"{name}.nii.gz", label_map("ED"))
    (tmp_path / "raw" / "below").mkdir(parents=True)
    (tmp_path / "file.txt").touch()
    path = tmp_path / labels
    said = {"nowhere": f"{path}, which does not exist", "file.txt": f"{path}, a file"}
    with refused("--labels", got=said.get(labels, path)):
        evaluate_folder(predictions, tmp_path / labels, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_cases_and_predictions_and_two_files_of_a_case_are_refused(
    manifest: Path, predictions: Path, tmp_path: Path, refused: Refused
) -> None:
    with refused("--predictions", got=f"{tmp_path / 'nowhere'}, which does not exist"):
        evaluate_folder(tmp_path / "nowhere", manifest, tmp_path / "out")
    with refused("--labels", got=manifest):
        evaluate_folder(predictions, manifest, tmp_path / "out", fold=4)
    with refused("--labels", got=predictions):
        evaluate_folder(predictions, predictions, tmp_path / "out", fold=0)
    (predictions / "p1_ED.nii").touch()
    with refused("p1_ED"):
        evaluate_folder(predictions, manifest, tmp_path / "out")


def test_a_file_name_that_is_not_shown_is_its_cases_failure(predictions: Path, tmp_path: Path) -> None:
    hidden = predictions / "p9\n_ED.nii.gz"
    hidden.write_bytes((predictions / "p1_ED.nii.gz").read_bytes())
    scores = evaluate_folder(predictions, predictions, tmp_path / "out")
    assert "p1_ED" in {row.case_id for row in scores.rows}
    (failure,) = scores.failures
    assert (failure.case_id, failure.key) == ("p9\n_ED", "case_id")
    assert failed_in(tmp_path / "out") == ["p9\n_ED"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::uumamba.data.scan.AcdcSpacingWarning")
def test_the_real_acdc_labels_against_themselves_give_dice_1_and_the_known_ejection_fractions(
    acdc_raw: Path, tmp_path: Path
) -> None:
    from data_prep.acdc import read_acdc

    manifest, faults = read_acdc(acdc_raw)
    assert faults == []
    manifest.write(tmp_path / "dataset.json")
    scores = evaluate_folder(tmp_path / "dataset.json", tmp_path / "dataset.json", tmp_path / "out")
    assert scores.failures == ()
    assert len(scores.rows) == 200 * 3
    assert all(row.dice == 1.0 for row in scores.rows if row.label_volume_ml > 0)
    assert all(5 < row.label_volume_ml < 500 for row in scores.rows if row.structure == "LV")
    groups = read_json(tmp_path / "out" / "summary.json")["clinical"]["groups"]
    # Group means of the labels with the true spacing, from the data's own description.
    known = {"DCM": 20, "MINF": 31, "RV": 56, "NOR": 62, "HCM": 70}
    assert {name: groups[name]["lv_ef_percent"]["label"] for name in known} == pytest.approx(known, abs=3)


# Vessels.


def tube(*, slices: int = 21) -> np.ndarray:
    labels = np.zeros((9, 9, 24), np.uint8)
    labels[3:6, 3:6, 1 : 1 + slices] = 1
    return labels


def save_mha(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(labels.transpose(2, 1, 0))
    image.SetSpacing(SPACING_MM)
    SimpleITK.WriteImage(image, path)


@pytest.fixture
def imagecas(tmp_path: Path) -> Path:
    """Raw folder of ImageCAS with predictions; case 3 is a test case."""
    raw = tmp_path / "imagecas"
    for number in (1, 2, 3):
        save(raw / "1-200" / f"{number}.img.nii.gz", tube() * 100)
        save(raw / "1-200" / f"{number}.label.nii.gz", tube())
        save(tmp_path / "vessels" / f"imagecas{number:04d}.nii.gz", tube(slices=16))
    (raw / "imageCAS_data_split.csv").write_text("FileName,Split-1\n1,Validation\n2,Training\n3,Testing\n")
    return raw


@pytest.mark.parametrize(("chosen", "cases"), [({"fold": 0}, [1]), ({"split": "training"}, [1, 2]), ({}, [1, 2, 3])])
def test_folds_and_splits_of_imagecas_are_those_of_its_sheet(
    chosen: dict, cases: list[int], imagecas: Path, tmp_path: Path
) -> None:
    scores = evaluate_folder(tmp_path / "vessels", imagecas, tmp_path / "out", **chosen)
    assert [row.case_id for row in scores.rows] == [f"imagecas{number:04d}" for number in cases]
    # 21 slices are 200 mm long from centre to centre, 16 are 150 mm.
    assert [row.length_error for row in scores.rows] == pytest.approx([-50 / 200] * len(cases))
    assert names_in(tmp_path / "out") == {"scores.csv", "summary.json"}


def test_an_unpacked_shard_is_a_data_set_and_without_its_sheet_refused(imagecas: Path, tmp_path: Path) -> None:
    shard = imagecas / "1-200"
    sheet = (imagecas / "imageCAS_data_split.csv").rename(shard / "imageCAS_data_split.csv")
    scores = evaluate_folder(tmp_path / "vessels", shard, tmp_path / "out", fold=0)
    assert [row.case_id for row in scores.rows] == ["imagecas0001"]
    sheet.unlink()
    with pytest.raises(UsageError, match="imageCAS_data_split"):
        evaluate_folder(tmp_path / "vessels", imagecas, tmp_path / "out")


def aorta(*, right: int, left: int) -> np.ndarray:
    """Make a straight Zone9 with two renal arteries of these label values."""
    labels = np.zeros((25, 9, 9), np.uint8)
    labels[11:14, 3:6, 1:8] = 17
    labels[2:11, 4, 4], labels[14:23, 4, 4] = right, left
    return labels


def test_swapped_sides_and_the_tree_of_all_zones_reach_files_terminal_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Predict the second subject of AortaSeg24 with left and right swapped."""
    raw, out = tmp_path / "aorta", tmp_path / "run"
    for number, (right, left) in ((1, (15, 16)), (7, (16, 15))):
        save_mha(raw / "images" / f"subject{number:03d}_CTA.mha", aorta(right=15, left=16) * 10)
        save_mha(raw / "masks" / f"subject{number:03d}_label.mha", aorta(right=15, left=16))
        save_mha(out / "predictions" / f"subject{number:03d}.mha", aorta(right=right, left=left))
    manifest, _ = read_dataset("aorta", raw)
    manifest.write(out / "prepared" / "dataset.json")
    scores = evaluate_folder(out / "predictions", raw, out)
    sides = read_json(out / "summary.json")["sides"]
    assert (sides["n_checked"], {each["case_id"] for each in sides["swapped"]}) == (4, {"subject007"})
    trees = [(row.case_id, row.structure, row.dice) for row in read_scores(out / "trees.csv")]
    assert trees == [("subject001", "whole tree", 1.0), ("subject007", "whole tree", 1.0)], "a tree has no names"
    print_summary(scores)
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of 4 paired structures are swapped" in printed
    assert "The clinical table" not in printed
    html = report(out, tmp_path / "report.html").read_text(encoding="utf-8")
    for shown in (
        "<strong>subject007</strong>: RenalR",
        "The vessels of subject007 in label and prediction",
        '<tr class="total"><th scope="row">whole tree</th><td>1.000',
    ):
        assert shown in html
    assert 'id="clinical"' not in html
    evaluate_folder(out / "predictions", raw, out, vessels=["Zone9"])
    assert not (out / "trees.csv").exists(), "trees of an earlier call are removed"


@pytest.mark.parametrize(
    ("selected", "filled"), [(None, set()), (["all"], {"label_1", "label_3"}), (["label_3"], {"label_3"}), ([], set())]
)
def test_vessels_of_a_plain_folder_are_the_selected_ones(
    selected: list[str] | None, filled: set[str], tmp_path: Path, refused: Refused
) -> None:
    labels = tube()
    labels[:, :, 12:] *= 3
    folder = save(tmp_path / "labels" / "a.nii.gz", labels).parent
    scores = evaluate_folder(folder, folder, tmp_path / "out", vessels=selected)
    assert {row.structure for row in scores.rows if row.is_vessel} == filled
    with refused("--vessels", got="aorta"):
        evaluate_folder(folder, folder, tmp_path / "out", vessels=["aorta", "label_1"])


def test_mirror_pairs_of_structures_that_are_not_scored_are_ignored(tmp_path: Path) -> None:
    label = save(tmp_path / "a_gt.nii.gz", tube())
    extra = {"mirror_pairs": [["RenalR", "RenalL"], ["Zone10R", "Zone10L"]]}
    manifest = Manifest("toy", "CT", {"RenalR": 1, "RenalL": 2}, (Case("a", "a", "x", label, label),), extra=extra)
    manifest.write(tmp_path / "dataset.json")
    scores = evaluate_folder(tmp_path, tmp_path, tmp_path / "out")
    assert [row.partner for row in scores.rows] == ["RenalL", "RenalR"]
