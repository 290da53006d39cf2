import csv
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from uumamba.evaluation import EvaluationPair, ScoreRow, evaluate, read_scores, summarise, write_scores, write_summary
from uumamba.evaluation.summary import StructureSummary


def pick(rows: tuple[StructureSummary, ...], structure: str, phase: str) -> StructureSummary:
    return next(row for row in rows if (row.structure, row.phase) == (structure, phase))


def test_misses_and_inventions_are_counted_apart(cohort: tuple[ScoreRow, ...]) -> None:
    rv = {row.phase: row for row in summarise(cohort).structures if row.structure == "RV"}
    counts = {name: (row.n_cases, row.n_missed, row.n_spurious, row.n_both_empty) for name, row in rv.items()}
    assert counts == {"ED": (3, 1, 0, 0), "ES": (3, 0, 1, 0), "all": (6, 1, 1, 0)}


def test_a_miss_counts_as_0_in_dice_and_stays_out_of_the_mean_distance(cohort: tuple[ScoreRow, ...]) -> None:
    rv_at_ed = pick(summarise(cohort).structures, "RV", "ED")
    # Dice of a, b, c: 180/190, 0 (missed), 1. Distances: 10, infinite, 0.
    assert rv_at_ed.dice.mean == pytest.approx((180 / 190 + 0 + 1) / 3)
    assert rv_at_ed.dice.n == 3
    assert rv_at_ed.hd95_mm.mean == pytest.approx(5.0)
    assert rv_at_ed.hd95_mm.n == 2


def test_a_structure_absent_from_both_is_counted_and_in_no_mean(
    make_pair: Callable[..., EvaluationPair], structures: dict[str, int]
) -> None:
    pairs = [make_pair("a", {"LV": 5}, {"LV": 5}), make_pair("b", {"LV": 5, "RV": 4}, {"LV": 5, "RV": 4})]
    summary = summarise(evaluate(pairs, structures=structures).rows)
    rv, myo = pick(summary.structures, "RV", "all"), pick(summary.structures, "MYO", "all")
    assert (rv.n_both_empty, rv.dice.n, rv.dice.mean, rv.dice.sd) == (1, 1, 1.0, None)
    assert (myo.n_both_empty, myo.dice.n, myo.dice.mean) == (2, 0, None)
    assert summary.foreground_dice == 1.0


def test_phases_come_in_the_order_of_the_heartbeat_and_then_all(cohort: tuple[ScoreRow, ...]) -> None:
    assert [row.phase for row in summarise(cohort).structures if row.structure == "LV"] == ["ED", "ES", "all"]
    at_ed = [row for row in cohort if row.phase == "ED"]
    assert {row.phase for row in summarise(at_ed).structures} == {"all"}
    assert (summarise(cohort).n_cases, summarise(cohort).n_patients) == (6, 3)


def test_summary_json_recomputes_from_scores_csv(cohort: tuple[ScoreRow, ...], tmp_path: Path) -> None:
    write_scores(tmp_path / "scores.csv", cohort)
    write_summary(tmp_path / "summary.json", cohort)
    stored = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
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


def test_summary_json_writes_the_empty_mask_rule_down(cohort: tuple[ScoreRow, ...], tmp_path: Path) -> None:
    write_summary(tmp_path / "summary.json", cohort, failed=["z", "y"])
    stored = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert "Exactly one mask empty is a total miss" in stored["rules"]["empty_masks"]
    assert stored["failed"] == ["y", "z"]
    assert stored["clinical"]["groups"]["DCM"]["lv_ef_percent"]["label"] == 20.0


def test_summary_json_says_why_it_has_no_clinical_part(
    make_pair: Callable[..., EvaluationPair], structures: dict[str, int], tmp_path: Path
) -> None:
    write_summary(tmp_path / "summary.json", evaluate([make_pair("a", {}, {})], structures=structures).rows)
    stored = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert list(stored["clinical"]) == ["left_out"]
    assert stored["foreground_dice"] is None


@pytest.fixture
def of_vendors(cohort: tuple[ScoreRow, ...]) -> tuple[ScoreRow, ...]:
    """Patients a and b of vendor A, c of vendor D."""
    return tuple(replace(row, domain="D" if row.patient_id == "c" else "A") for row in cohort)


def test_each_of_several_domains_is_summarised_as_if_it_were_alone(of_vendors: tuple[ScoreRow, ...]) -> None:
    summary = summarise(of_vendors)
    assert [(each.domain, each.n_cases, each.n_patients) for each in summary.domains] == [("A", 4, 2), ("D", 2, 1)]
    for each in summary.domains:
        alone = summarise([row for row in of_vendors if row.domain == each.domain])
        assert (each.foreground_dice, each.structures) == (alone.foreground_dice, alone.overall())
        assert alone.domains == ()
    assert replace(summary, domains=()) == summarise([replace(row, domain=None) for row in of_vendors])


def test_the_domain_is_read_back_and_absent_from_an_older_table(
    of_vendors: tuple[ScoreRow, ...], tmp_path: Path
) -> None:
    path = tmp_path / "scores.csv"
    write_scores(path, of_vendors)
    assert read_scores(path) == of_vendors
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith(",domain")
    path.write_text("\n".join(line.rpartition(",")[0] for line in lines), encoding="utf-8")
    assert {row.domain for row in read_scores(path)} == {None}
