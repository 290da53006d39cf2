"""``summary.json`` of a run recomputes from its folds' rows, and the report shows the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uumamba.evaluation import EvaluationPair, evaluate, write_scores
from uumamba.evaluation.scores import SCORES_NAME
from uumamba.pipelines.report import report
from uumamba.pipelines.run_summary import print_run_summary, write_run_summary
from uumamba.runtime.files import write_json
from uumamba.training import RunLog


def log(run: Path, place: str, *rows: Mapping[str, Any], seed: int | None = None) -> None:
    """A fold's rows, and its configuration as far as the summary reads it."""
    (run / place).mkdir(parents=True)
    for epoch, row in enumerate(rows):
        RunLog(run / place / "metrics.jsonl").append({"epoch": epoch, "loss": 1.0, "seconds": 1.0} | dict(row))
    if seed is not None:
        write_json(run / place / "config.json", {"run": {"seed": seed}})


def two_by_two(run: Path) -> None:
    """Two seeds of two folds; the last validation is what counts, whether or not the last epoch had one."""
    log(run, "seed_0/fold_0", {"dice": 0.9, "dice_RV": 0.9}, {"dice": 0.4, "dice_RV": 0.3}, {"dice": None})
    log(run, "seed_0/fold_1", {"dice": 0.6, "dice_RV": 0.5})
    log(run, "seed_1/fold_0", {"dice": 0.7, "dice_RV": float("nan")})
    log(run, "seed_1/fold_1", {"dice": 0.7, "dice_RV": 0.7})
    log(run, "seed_1/fold_all", {"dice": None})


def test_the_last_validation_of_each_training_is_summarised(tmp_path: Path) -> None:
    two_by_two(tmp_path)
    write_run_summary(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(each["seed"], each["fold"], each["epochs"]) for each in summary["trainings"]] == [
        (0, "0", 3),
        (0, "1", 1),
        (1, "0", 1),
        (1, "1", 1),
    ]
    mean, rv = summary["validation_dice"]["mean"], summary["validation_dice"]["RV"]
    assert mean["mean"] == pytest.approx(0.6)
    assert mean["sd_over_seeds"] == pytest.approx(0.2 / 2**0.5)
    assert rv["n"] == 3, "a fold without the structure is in no mean"
    assert rv["mean"] == pytest.approx(0.5)


def test_the_seed_of_a_run_of_one_is_its_configurations(tmp_path: Path) -> None:
    log(tmp_path, "fold_0", {"dice": 0.5}, seed=17)
    write_run_summary(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["trainings"][0]["seed"] == 17


def test_where_nothing_was_validated_there_is_no_summary(tmp_path: Path) -> None:
    log(tmp_path, "fold_all", {"dice": None})
    write_run_summary(tmp_path)
    assert not (tmp_path / "summary.json").exists()


def test_the_terminal_shows_the_spread_of_several_trainings_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log(tmp_path / "one", "fold_0", {"dice": 0.5})
    print_run_summary(tmp_path / "one")
    assert capsys.readouterr().out == ""
    two_by_two(tmp_path / "four")
    print_run_summary(tmp_path / "four")
    shown = capsys.readouterr().out
    assert "Validation Dice of 4 trainings" in shown
    assert "sd over seeds" in shown
    assert "0.600" in shown
    log(tmp_path / "folds", "fold_0", {"dice": 0.5})
    log(tmp_path / "folds", "fold_1", {"dice": 0.7})
    print_run_summary(tmp_path / "folds")
    assert "sd over seeds" not in capsys.readouterr().out


def test_the_report_shows_seeds_and_their_spread(tmp_path: Path) -> None:
    two_by_two(tmp_path / "run")
    mask = np.ones((2, 2, 2), np.uint8)
    scores = evaluate([EvaluationPair("a", "a", mask, mask, (1.0, 1.0, 1.0))], structures={"RV": 1})
    write_scores(tmp_path / SCORES_NAME, scores.rows)
    html = report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "seed 1, fold 1" in html
    assert "over folds and seeds" in html
    assert "<td>4</td><td>0.600</td>" in html
