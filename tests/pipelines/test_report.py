"""The report of a run's folder, and of a table of scores alone."""

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from uumamba.data.case import Case, Manifest
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.report import report
from uumamba.runtime.errors import UsageError

STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([-1.5, -1.5, 8.0, 1.0])), path)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's output folder: two patients at ED and ES, predictions shifted by 0, 1, 2 and 3 voxels."""
    out, cases = tmp_path / "run_out", []
    labels = np.zeros((40, 40, 4), np.uint8)
    labels[8:16, 12:28, 1:], labels[18:30, 12:28, 1:], labels[21:27, 15:25, 1:] = 1, 2, 3
    image = np.random.default_rng(0).random(labels.shape).astype(np.float32) + labels
    for number, (patient, phase) in enumerate((("p1", "ED"), ("p1", "ES"), ("p2", "ED"), ("p2", "ES"))):
        case_id = f"{patient}_{phase}"
        scan = save(tmp_path / "raw" / f"{case_id}.nii.gz", image)
        label = save(tmp_path / "raw" / f"{case_id}_gt.nii.gz", labels)
        save(out / "predictions" / f"{case_id}.nii.gz", np.roll(labels, number, axis=0))
        cases.append(Case(case_id, patient, "x", scan, label, fold=0, phase=phase, group="NOR"))
    reference, licence = "Someone et al., 2020", "CC0"
    manifest = Manifest("Toy hearts", "MR", STRUCTURES, tuple(cases), reference=reference, licence=licence)
    manifest.write(out / "prepared" / "dataset.json")
    evaluate_folder(out / "predictions", out / "prepared", out)
    return out


def write_training_rows(run: Path, fold: str = "fold_0") -> Path:
    path = run / "run" / fold / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"epoch": e, "loss": 1 / (e + 1), "dice": 0.1 * e, "seconds": 3.0} for e in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_report_of_a_run_shows_best_median_and_worst_case(run: Path, tmp_path: Path) -> None:
    html = report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<title>Toy hearts: segmentation report</title>" in html
    for role, case_id in (("Best", "p1_ED"), ("Median", "p2_ED"), ("Worst", "p2_ES")):
        assert f"<strong>{role}: {case_id}</strong>" in html
    assert "Someone et al., 2020" in html
    assert "Licence of the data: CC0." in html
    assert not re.search(r"https?://", re.sub(r"base64,[^\"]+", "", html))


def test_the_report_has_a_training_curve_where_rows_are(run: Path, tmp_path: Path) -> None:
    assert "There is no training curve" in report(run, tmp_path / "without.html").read_text(encoding="utf-8")
    write_training_rows(run)
    write_training_rows(run, "fold_1")
    html = report(run, tmp_path / "with.html").read_text(encoding="utf-8")
    assert "There is no training curve" not in html
    assert '<th scope="row">fold 1</th><td>5</td><td>0.200</td><td>0.400</td><td>0.2</td>' in html


def test_an_unfinished_last_row_of_a_killed_run_is_passed_over(run: Path, tmp_path: Path) -> None:
    path = write_training_rows(run)
    path.write_text(path.read_text(encoding="utf-8")[:-10])
    assert '<th scope="row">fold 0</th><td>4</td>' in report(run, tmp_path / "report.html").read_text(encoding="utf-8")


def test_baselines_stand_beside_the_model(run: Path, tmp_path: Path) -> None:
    (run / "baselines.json").write_text('{"mean-shape atlas": {"dice": 0.4, "RV": 0.3, "MYO": 0.4, "LV": 0.5}}')
    html = report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<th scope="row">mean-shape atlas</th><td>0.400</td><td>0.300</td><td>0.400</td><td>0.500</td>' in html


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_baselines_that_are_none_are_refused(text: str, run: Path, tmp_path: Path) -> None:
    (run / "baselines.json").write_text(text)
    with pytest.raises(UsageError, match=r"baselines.json (is not JSON|holds list where a dict belongs)"):
        report(run, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_scores_alone_give_a_report_that_says_what_it_lacks(run: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    scores = tmp_path / "alone" / "scores.csv"
    scores.write_bytes((run / "scores.csv").read_bytes())
    html = report(scores, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "There are no overlays" in html
    assert "LV ejection fraction" in html


def test_a_case_that_cannot_be_drawn_is_named_and_the_others_are_drawn(run: Path, tmp_path: Path) -> None:
    (run / "predictions" / "p2_ES.nii.gz").unlink()
    html = report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The worst case is not drawn. p2_ES: its prediction is not there" in html
    assert "<strong>Best: p1_ED</strong>" in html


def test_cases_that_could_not_be_scored_are_listed(run: Path, tmp_path: Path) -> None:
    (run / "failures.json").write_text('[{"case_id": "p3_ED", "problem": "it is truncated", "cure": "restore it"}]')
    html = report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<strong>p3_ED</strong>: it is truncated; restore it." in html


@pytest.mark.parametrize("name", ["scores.csv", "report"])
def test_the_report_replaces_nothing_that_is_no_html(name: str, run: Path) -> None:
    before = (run / "scores.csv").read_bytes()
    with pytest.raises(UsageError, match=rf"The report is HTML, so .*{name} cannot be its name; end it in .html"):
        report(run, run / name)
    assert (run / "scores.csv").read_bytes() == before


def test_a_folder_without_scores_says_who_writes_them(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"There are no scores at .*; `uumamba evaluate` writes them"):
        report(tmp_path, tmp_path / "report.html")


def test_the_same_run_gives_the_same_report(run: Path, tmp_path: Path) -> None:
    write_training_rows(run)
    assert report(run, tmp_path / "a.html").read_bytes() == report(run, tmp_path / "b.html").read_bytes()
