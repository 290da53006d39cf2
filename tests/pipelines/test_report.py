"""Report of a run and of a table of scores."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.run_files import Refused, save_nifti
from uumamba.data.case import Case, Manifest
from uumamba.pipelines.datasets import record_failures
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.report import report
from uumamba.runtime.errors import CaseError, UsageError

STRUCTURES = {"RV": 1, "MYO": 2, "LV": 3}
AFFINE_MM = (-1.5, -1.5, 8.0)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder with predictions shifted by 0 to 3 voxels."""
    out, cases = tmp_path_factory.mktemp("run"), []
    labels = np.zeros((40, 40, 4), np.uint8)
    labels[8:16, 12:28, 1:], labels[18:30, 12:28, 1:], labels[21:27, 15:25, 1:] = 1, 2, 3
    image = np.random.default_rng(0).random(labels.shape).astype(np.float32) + labels
    for number, (patient, phase) in enumerate((("p1", "ED"), ("p1", "ES"), ("p2", "ED"), ("p2", "ES"))):
        case_id = f"{patient}_{phase}"
        scan = save_nifti(out / "raw" / f"{case_id}.nii.gz", image, AFFINE_MM)
        label = save_nifti(out / "raw" / f"{case_id}_gt.nii.gz", labels, AFFINE_MM)
        save_nifti(out / "predictions" / f"{case_id}.nii.gz", np.roll(labels, number, axis=0), AFFINE_MM)
        cases.append(Case(case_id, patient, "x", scan, label, fold=0, phase=phase, group="NOR"))
    reference, licence = "Someone et al., 2020", "CC0"
    manifest = Manifest("Toy hearts", "MR", STRUCTURES, tuple(cases), reference=reference, licence=licence)
    manifest.write(out / "prepared" / "dataset.json")
    evaluate_folder(out / "predictions", out / "prepared", out)
    return out


@pytest.fixture
def run(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of the run's output folder."""
    return Path(shutil.copytree(evaluated, tmp_path / "out"))


def test_the_report_shows_every_file_in_the_folder_of_the_scores(run: Path, tmp_path: Path) -> None:
    rows = [{"epoch": e, "loss": 1 / (e + 1), "dice": 0.1 * e, "seconds": 3.0} for e in range(5)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    for fold, unfinished in (("fold_0", 10), ("fold_1", 0)):  # fold 0 was killed while it wrote its last row
        (run / "run" / fold).mkdir(parents=True)
        (run / "run" / fold / "metrics.jsonl").write_text(text[: len(text) - unfinished])
    (run / "baselines.json").write_text('{"mean-shape atlas": {"dice": 0.4, "RV": 0.3, "MYO": 0.4, "LV": 0.5}}')
    record_failures(run, [CaseError("p3_ED", "image", got="half a file", expected="a whole one", fix="restore it")])
    html = report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    for shown in (
        "<title>Toy hearts: segmentation report</title>",
        *(f"<strong>{role}</strong>" for role in ("Best: p1_ED", "Median: p2_ED", "Worst: p2_ES")),
        "Someone et al., 2020",
        "Licence of the data: CC0.",
        '<th scope="row">fold 0</th><td>4</td>',
        '<th scope="row">fold 1</th><td>5</td><td>0.200</td><td>0.400</td><td>0.2</td>',
        '<th scope="row">mean-shape atlas</th><td>0.400</td><td>0.300</td><td>0.400</td><td>0.500</td>',
        "<strong>p3_ED</strong>: image: got half a file, expected a whole one. Fix: restore it.",
    ):
        assert shown in html, shown
    assert "There is no training curve" not in html
    assert not re.search(r"https?://", re.sub(r"base64,[^\"]+", "", html)), "offline"
    assert report(run, tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_a_report_of_only_scores_has_notes_on_missing_parts(run: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    scores = Path(shutil.copy(run / "scores.csv", tmp_path / "alone"))
    html = report(scores, tmp_path / "report.html").read_text(encoding="utf-8")
    for shown in ("There are no overlays", "There is no training curve", "LV ejection fraction"):
        assert shown in html


def test_a_case_that_cannot_be_drawn_is_named_and_the_others_are_drawn(run: Path, tmp_path: Path) -> None:
    (run / "predictions" / "p2_ES.nii.gz").unlink()
    html = report(run, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The worst case is not drawn. p2_ES: prediction: got no file" in html
    assert "<strong>Best: p1_ED</strong>" in html


@pytest.mark.parametrize(
    ("name", "text"), [("baselines.json", "{"), ("failures.json", '[{"case_id": "a", "problem": "b", "cure": "c"}]')]
)
def test_a_damaged_or_old_file_is_refused(name: str, text: str, run: Path, tmp_path: Path, refused: Refused) -> None:
    (run / name).write_text(text)
    with refused(str(run / name)):
        report(run, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("name", ["scores.csv", "report"])
def test_the_report_replaces_only_html(name: str, run: Path, refused: Refused) -> None:
    before = (run / "scores.csv").read_bytes()
    with refused("--out", got=run / name):
        report(run, run / name)
    assert (run / "scores.csv").read_bytes() == before


@pytest.mark.parametrize("folder", ["fold_0", "seed_1/fold_0"])
def test_a_run_that_was_only_trained_gets_a_page_on_its_training(folder: str, tmp_path: Path) -> None:
    (tmp_path / "mine" / folder).mkdir(parents=True)
    rows = [{"epoch": e, "loss": 1 / (e + 1), "dice": 0.1 * e, "seconds": 3.0} for e in range(5)]
    (tmp_path / "mine" / folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = report(tmp_path / "mine", tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<title>mine: training report</title>" in html
    assert "No case has been scored yet." in html
    assert "<td>5</td><td>0.200</td><td>0.400</td>" in html
    assert not re.search(r"https?://|scores above", re.sub(r"base64,[^\"]+", "", html))


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        report(tmp_path, tmp_path / "report.html")
