import csv
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uumamba.evaluation import EvaluationPair, ScoreRow, evaluate, summarise, write_scores, write_summary
from uumamba.evaluation.summary import StructureSummary


def pick(rows: tuple[StructureSummary, ...], structure: str, phase: str) -> StructureSummary:
    return next(row for row in rows if (row.structure, row.phase) == (structure, phase))


def written_summary(path: Path, rows: tuple[ScoreRow, ...], **options: Any) -> dict[str, Any]:
    write_summary(path, rows, **options)
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return stored


def test_missed_and_spurious_structures_are_counted(cohort: tuple[ScoreRow, ...]) -> None:
    rv = {row.phase: row for row in summarise(cohort).structures if row.structure == "RV"}
    counts = {name: (row.n_cases, row.n_missed, row.n_spurious, row.n_both_empty) for name, row in rv.items()}
    assert counts == {"ED": (3, 1, 0, 0), "ES": (3, 0, 1, 0), "all": (6, 1, 1, 0)}


def test_a_miss_has_dice_0_in_the_mean_and_is_not_in_the_mean_distance(cohort: tuple[ScoreRow, ...]) -> None:
    rv_at_ed = pick(summarise(cohort).structures, "RV", "ED")
    # Dice of a, b, c: 180/190, 0 (missed), 1. Distances: 10, infinite, 0.
    assert (rv_at_ed.dice.mean, rv_at_ed.dice.n) == (pytest.approx((180 / 190 + 0 + 1) / 3), 3)
    assert (rv_at_ed.hd95_mm.mean, rv_at_ed.hd95_mm.n) == (pytest.approx(5.0), 2)


def test_a_structure_absent_from_prediction_and_label_is_counted_and_in_no_mean(
    make_pair: Callable[..., EvaluationPair], structures: dict[str, int]
) -> None:
    pairs = [make_pair("a", {"LV": 5}, {"LV": 5}), make_pair("b", {"LV": 5, "RV": 4}, {"LV": 5, "RV": 4})]
    summary = summarise(evaluate(pairs, structures=structures).rows)
    rv, myo = pick(summary.structures, "RV", "all"), pick(summary.structures, "MYO", "all")
    assert (rv.n_both_empty, rv.dice.n, rv.dice.mean, rv.dice.sd) == (1, 1, 1.0, None)
    assert (myo.n_both_empty, myo.dice.n, myo.dice.mean) == (2, 0, None)
    assert summary.foreground_dice == 1.0


def test_phases_are_end_diastole_then_end_systole_then_all(cohort: tuple[ScoreRow, ...]) -> None:
    summary = summarise(cohort)
    assert [row.phase for row in summary.structures if row.structure == "LV"] == ["ED", "ES", "all"]
    assert (summary.n_cases, summary.n_patients) == (6, 3)
    assert {row.phase for row in summarise([row for row in cohort if row.phase == "ED"]).structures} == {"all"}


def test_summary_json_recomputes_from_scores_csv(cohort: tuple[ScoreRow, ...], tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.csv", cohort)
    stored = written_summary(tmp_path / "summary.json", cohort)
    with (tmp_path / "scores.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(stored["structures"]) == 9
    for entry in stored["structures"]:
        own = [r for r in rows if r["structure"] == entry["structure"] and entry["phase"] in ("all", r["phase"])]
        for column in ("dice", "hd95_mm", "nsd", "assd_mm"):
            values = [float(row[column]) for row in own if math.isfinite(float(row[column]))]
            assert entry[column]["n"] == len(values)
            assert entry[column]["mean"] == pytest.approx(statistics.mean(values), rel=1e-12)
            assert entry[column]["sd"] == pytest.approx(statistics.stdev(values), rel=1e-9)
    means = [entry["dice"]["mean"] for entry in stored["structures"] if entry["phase"] == "all"]
    assert stored["foreground_dice"] == pytest.approx(statistics.mean(means), rel=1e-12)


def test_summary_json_holds_rules_failures_and_clinical_means(cohort: tuple[ScoreRow, ...], tmp_path: Path) -> None:
    stored = written_summary(tmp_path / "summary.json", cohort, failed=["z", "y"])
    assert "Exactly one mask empty is a total miss" in stored["rules"]["empty_masks"]
    assert stored["failed"] == ["y", "z"]
    assert stored["clinical"]["groups"]["DCM"]["lv_ef_percent"]["label"] == 20.0


def test_summary_json_gives_the_reason_for_a_missing_clinical_part(
    make_pair: Callable[..., EvaluationPair], structures: dict[str, int], tmp_path: Path
) -> None:
    rows = evaluate([make_pair("a", {}, {})], structures=structures).rows
    stored = written_summary(tmp_path / "summary.json", rows)
    assert list(stored["clinical"]) == ["left_out"]
    assert stored["foreground_dice"] is None


def test_each_of_several_domains_has_the_summary_of_its_own_rows(two_vendors: tuple[ScoreRow, ...]) -> None:
    summary = summarise(two_vendors)
    assert [(each.domain, each.n_cases, each.n_patients) for each in summary.domains] == [("A", 4, 2), ("D", 2, 1)]
    for each in summary.domains:
        own = summarise([row for row in two_vendors if row.domain == each.domain])
        assert (each.foreground_dice, each.structures, own.domains) == (own.foreground_dice, own.overall(), ())
    assert replace(summary, domains=()) == summarise([replace(row, domain=None) for row in two_vendors])
