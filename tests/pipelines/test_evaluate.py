"""From files of label maps to scores: what may stand for predictions and labels, and what is refused."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from uumamba.data.case import Case, Manifest
from uumamba.evaluation import ScoreRow, read_scores
from uumamba.pipelines.evaluate import MissingPredictions, evaluate_folder, print_summary
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
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(labels, affine), path)
    return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two patients at ED and ES, the first in fold 0, the second in fold 1."""
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
    """A folder of perfect predictions, one file a case."""
    for case in Manifest.read(manifest).cases:
        save(tmp_path / "predictions" / f"{case.case_id}.nii.gz", label_map(str(case.phase)))
    return tmp_path / "predictions"


def test_a_manifest_against_itself_scores_one_everywhere(manifest: Path, tmp_path: Path) -> None:
    scores = evaluate_folder(manifest, manifest, tmp_path / "out")
    assert len(scores.rows) == 4 * 3
    assert {row.dice for row in scores.rows} == {1.0}
    assert {row.hd95_mm for row in scores.rows} == {0.0}
    assert scores.failures == ()


def test_files_hold_what_was_returned(manifest: Path, tmp_path: Path) -> None:
    scores = evaluate_folder(manifest, manifest, tmp_path / "out")
    assert read_scores(tmp_path / "out" / "scores.csv") == scores.rows
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["foreground_dice"] == 1.0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scores.csv", "summary.json", "patients.csv"}


def test_ejection_fraction_and_mass_of_hand_made_volumes(manifest: Path, predictions: Path, tmp_path: Path) -> None:
    evaluate_folder(predictions, manifest, tmp_path / "out")
    with (tmp_path / "out" / "patients.csv").open() as stream:
        first = next(csv.DictReader(stream))
    assert first["patient_id"] == "p1"
    assert first["group"] == "NOR"
    assert float(first["lv_edv_ml"]) == pytest.approx(20.0)
    assert float(first["lv_ef_percent"]) == pytest.approx(60.0)
    assert float(first["rv_ef_percent_label"]) == pytest.approx(25.0)
    assert float(first["lv_mass_g"]) == pytest.approx(300 * 0.04 * 1.05)


def test_a_fold_scores_its_own_cases_alone(manifest: Path, predictions: Path, tmp_path: Path) -> None:
    (predictions / "p1_ED.nii.gz").unlink()
    scores = evaluate_folder(predictions, manifest.parent, tmp_path / "out", fold=1, split="training")
    assert {row.patient_id for row in scores.rows} == {"p2"}


def test_a_missing_prediction_is_named_and_nothing_is_written(
    manifest: Path, predictions: Path, tmp_path: Path
) -> None:
    for name in ("p1_ES", "p2_ED"):
        (predictions / f"{name}.nii.gz").unlink()
    with pytest.raises(MissingPredictions, match=r"2 labelled cases have no prediction in .*: p1_ES, p2_ED; ") as error:
        evaluate_folder(predictions, manifest, tmp_path / "out")
    assert error.value.exit_code == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("shape", r"its label has the shape (30, 24, 4), the prediction p1_ES.nii.gz (29, 24, 4)"),
        ("place", "the prediction p1_ES.nii.gz does not lie on its label (image and label lie up to 25.0 voxels apart"),
        ("value", "the prediction p1_ES.nii.gz cannot be scored: its label holds the value 7"),
        ("truncated", "the prediction p1_ES.nii.gz cannot be scored: "),
    ],
)
def test_a_prediction_that_does_not_fit_fails_alone(
    fault: str, words: str, manifest: Path, predictions: Path, tmp_path: Path
) -> None:
    path = predictions / "p1_ES.nii.gz"
    spoil: dict[str, Callable[[], object]] = {
        "shape": lambda: save(path, label_map("ES")[:-1]),
        "place": lambda: save(path, label_map("ES"), shift_mm=50.0),
        "value": lambda: save(path, np.full((30, 24, 4), 7, np.uint8)),
        "truncated": lambda: path.write_bytes(path.read_bytes()[:60]),
    }
    spoil[fault]()
    scores = evaluate_folder(predictions, manifest, tmp_path / "out")
    assert [failure.case_id for failure in scores.failures] == ["p1_ES"]
    assert {row.case_id for row in scores.rows} == {"p1_ED", "p2_ED", "p2_ES"}
    listed = json.loads((tmp_path / "out" / "failures.json").read_text(encoding="utf-8"))
    assert [entry["case_id"] for entry in listed] == ["p1_ES"]
    assert listed[0]["problem"].startswith(words)
    assert listed[0]["cure"]
    assert json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["failed"] == ["p1_ES"]


def test_failures_of_an_earlier_evaluation_do_not_outlive_it(manifest: Path, predictions: Path, tmp_path: Path) -> None:
    whole = (predictions / "p1_ES.nii.gz").read_bytes()
    (predictions / "p1_ES.nii.gz").write_bytes(whole[:60])
    evaluate_folder(predictions, manifest, tmp_path / "out")
    (predictions / "p1_ES.nii.gz").write_bytes(whole)
    evaluate_folder(predictions, manifest, tmp_path / "out")
    assert not (tmp_path / "out" / "failures.json").exists()


def test_a_case_that_failed_before_needs_no_prediction_and_is_listed(
    manifest: Path, predictions: Path, tmp_path: Path
) -> None:
    (predictions / "p1_ES.nii.gz").unlink()
    failed = [
        CaseError("p1_ES", "its scan is truncated", "restore it"),
        CaseError("p3_ED", "it is empty", "scan again"),
    ]
    scores = evaluate_folder(predictions, manifest, tmp_path / "out", failed=failed)
    assert [failure.case_id for failure in scores.failures] == ["p1_ES", "p3_ED"]
    assert "p1_ES" not in {row.case_id for row in scores.rows}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["n_cases"], summary["failed"]) == (3, ["p1_ES", "p3_ED"])
    listed = json.loads((tmp_path / "out" / "failures.json").read_text(encoding="utf-8"))
    assert [entry["problem"] for entry in listed] == ["its scan is truncated", "it is empty"]


def test_scores_of_an_earlier_call_do_not_outlive_a_call_that_scores_nothing(
    manifest: Path, predictions: Path, tmp_path: Path
) -> None:
    evaluate_folder(predictions, manifest, tmp_path / "out")
    for path in predictions.iterdir():
        path.write_bytes(b"")
    evaluate_folder(predictions, manifest, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["failures.json"]


def test_when_no_case_can_be_scored_only_the_reasons_are_written(
    manifest: Path, predictions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in predictions.iterdir():
        path.write_bytes(b"")
    scores = evaluate_folder(predictions, manifest, tmp_path / "out")
    assert scores.rows == ()
    assert len(scores.failures) == 4
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["failures.json"]
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


def test_structures_can_be_named_for_a_folder(predictions: Path, tmp_path: Path) -> None:
    scores = evaluate_folder(predictions, predictions, tmp_path / "out", structures=STRUCTURES)
    assert [row.structure for row in scores.rows[:3]] == ["RV", "MYO", "LV"]


def test_a_structure_absent_from_label_and_prediction_follows_the_empty_mask_rule(tmp_path: Path) -> None:
    labels = np.where(label_map("ED") == 3, 3, 0).astype(np.uint8)
    save(tmp_path / "labels" / "a.nii.gz", labels)
    scores = evaluate_folder(tmp_path / "labels", tmp_path / "labels", tmp_path / "out", structures=STRUCTURES)
    absent = {row.structure: row for row in scores.rows}["RV"]
    assert str(absent.dice) == "nan"
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    entry = next(entry for entry in summary["structures"] if entry["structure"] == "RV")
    assert (entry["n_both_empty"], entry["dice"]["n"], entry["dice"]["mean"]) == (1, 0, None)
    assert summary["foreground_dice"] == 1.0


def test_acdcs_own_folder_is_recognised(tmp_path: Path) -> None:
    patient = tmp_path / "raw" / "training" / "patient001"
    for frame, phase in ((1, "ED"), (9, "ES")):
        for suffix in ("", "_gt"):
            save(patient / f"patient001_frame{frame:02d}{suffix}.nii.gz", label_map(phase))
        save(tmp_path / "predictions" / f"patient001_frame{frame:02d}.nii.gz", label_map(phase))
    (patient / "Info.cfg").write_text("ED: 1\nES: 9\nGroup: NOR\nHeight: 170\nNbFrame: 20\nWeight: 70\n")
    scores = evaluate_folder(tmp_path / "predictions", tmp_path / "raw", tmp_path / "out")
    assert {(row.case_id, row.phase, row.group) for row in scores.rows} == {
        ("patient001_frame01", "ED", "NOR"),
        ("patient001_frame09", "ES", "NOR"),
    }


def test_a_fold_of_acdcs_own_folder_leaves_out_the_faults_of_the_others(tmp_path: Path) -> None:
    """Five patients of one group stand in five folds; one frame of each lacks its label."""
    for number in range(1, 6):
        patient = tmp_path / "raw" / "training" / f"patient{number:03d}"
        for name in ("frame01", "frame01_gt", "frame09"):
            save(patient / f"patient{number:03d}_{name}.nii.gz", label_map("ED"))
        save(tmp_path / "predictions" / f"patient{number:03d}_frame01.nii.gz", label_map("ED"))
        (patient / "Info.cfg").write_text("ED: 1\nES: 9\nGroup: NOR\n")
    failed = set()
    for fold in range(5):
        scores = evaluate_folder(tmp_path / "predictions", tmp_path / "raw", tmp_path / "out", fold=fold)
        (patient_id,) = {row.patient_id for row in scores.rows}
        assert [failure.case_id for failure in scores.failures] == [f"{patient_id}_frame09"]
        failed.add(patient_id)
    assert len(failed) == 5


def test_a_case_without_a_label_is_not_scored(manifest: Path, tmp_path: Path) -> None:
    stored = json.loads(manifest.read_text(encoding="utf-8"))
    del stored["training"][0]["label"]
    manifest.write_text(json.dumps(stored))
    scores = evaluate_folder(manifest, manifest, tmp_path / "out")
    assert len({row.case_id for row in scores.rows}) == 3


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ("nowhere", "labels .*nowhere do not exist; give a folder"),
        ("empty", "No label map was found in .*empty; give a folder of <case_id>.nii.gz, a manifest"),
        ("file.txt", "file.txt is neither a folder nor a manifest"),
    ],
)
def test_labels_that_are_none_are_refused(labels: str, sentence: str, predictions: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").touch()
    with pytest.raises(UsageError, match=sentence):
        evaluate_folder(predictions, tmp_path / labels, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predictions_that_do_not_exist_are_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"predictions .*nowhere do not exist; give a folder"):
        evaluate_folder(tmp_path / "nowhere", manifest, tmp_path / "out")


def test_a_fold_without_cases_is_refused(manifest: Path, predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lists no case with a label in fold 4"):
        evaluate_folder(predictions, manifest, tmp_path / "out", fold=4)


def test_a_fold_of_a_plain_folder_is_refused(predictions: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder of label maps, which has no folds, splits or domains; give"):
        evaluate_folder(predictions, predictions, tmp_path / "out", fold=0)


def test_two_files_of_one_case_are_refused(manifest: Path, predictions: Path, tmp_path: Path) -> None:
    (predictions / "p1_ED.nii").touch()
    with pytest.raises(UsageError, match="are both the case p1_ED; rename one of them"):
        evaluate_folder(predictions, manifest, tmp_path / "out")


def test_the_summary_is_printed_with_ejection_fractions_by_group(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_summary(evaluate_folder(manifest, manifest, tmp_path / "out"))
    printed = capsys.readouterr().out
    assert "4 cases of 2 patients" in printed
    assert "60.0 / 60.0" in printed


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
    assert all(lv_volume_is_that_of_a_heart(row) for row in scores.rows if row.structure == "LV")
    groups = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["clinical"]["groups"]
    # Group means of the labels with the true spacing, from the data's own description.
    known = {"DCM": 20, "MINF": 31, "RV": 56, "NOR": 62, "HCM": 70}
    assert {name: groups[name]["lv_ef_percent"]["label"] for name in known} == pytest.approx(known, abs=3)


def lv_volume_is_that_of_a_heart(row: ScoreRow) -> bool:
    return 5 < row.label_volume_ml < 500
