"""Tests of the tables of claims, from results without training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.claims import domain_generalization, quantization, sharpness, sharpness_acdc, udim, useful
from benchmarks.claims.acdc import make_patient_row
from benchmarks.claims.members import MEMBERS
from benchmarks.claims.plan import EPOCHS, METHODS, SEEDS, TIME, Plan
from benchmarks.claims.run_log import Measured, Run, RunLog
from benchmarks.claims.settings import SETTINGS
from benchmarks.result_file import read_result, write_result
from uumamba.runtime.files import write_json

Replace = Callable[[Callable[[Run], Measured]], None]
USEFUL_SIDES = {
    **dict.fromkeys((useful.RECALL, useful.PRECISION), ("USEFUL", "USEFUL, logits")),
    **dict.fromkeys((useful.LEARNED, useful.FORGOTTEN), ("slow examples", "fast examples")),
}


def measure_sharpness(run: Run) -> Measured:
    return dict.fromkeys([claim.metric for claim in sharpness.CLAIMS], float(run.steps + run.seed))


def measure_low_bits(run: Run) -> Measured:
    return dict.fromkeys([claim.metric for claim, _ in quantization.CLAIMS], float(run.seed + (run.method == "LSQ")))


def measure_udim(run: Run) -> Measured:
    value = {udim.SAM_ALONE: 1.0, udim.CONTROL: 0.6}.get(run.method, 0.1) + 0.001 * run.seed
    return dict.fromkeys([claim.metric for claim, _ in udim.CLAIMS], value)


def measure_useful(run: Run) -> Measured:
    seed = run.seed - useful.FIRST_SEED
    errors = {"base": 0.04, "random copy": 0.03, "USEFUL": 0.02}
    if run.method in errors:
        return {useful.ERROR: errors[run.method] + 0.001 * seed, useful.SLOW_ERROR: 0.1 + 0.001 * seed}
    names = [f"{metric}, {side}" for metric in USEFUL_SIDES for side in USEFUL_SIDES[metric]]
    return dict.fromkeys(names, 0.95 - 0.01 * seed) | {"epoch": 3, "slow share": 0.11}


def make_sharpness_table(folder: Path) -> tuple[list[dict[str, Any]], str]:
    seconds = {name: [1.0, 1.0] if name == "base" else [2.0, 2.0] for name in MEMBERS}
    for setting in SETTINGS:
        write_json(folder / f"step_time_{setting}.json", seconds)
    plan = Plan(folder, quick=True, workers=1)
    rows = [row for setting in SETTINGS for row in sharpness.make_claim_rows(plan, setting)]
    return rows, sharpness.describe_table(plan)


def make_quantization_table(folder: Path) -> tuple[list[dict[str, Any]], str]:
    rows = list(quantization.make_claim_rows(RunLog(folder), steps=900, seeds=2, workers=1))
    return rows, quantization.describe_table(900)


@pytest.mark.parametrize(
    ("make_table", "measure", "count", "about", "expected"),
    [
        (
            make_sharpness_table,
            measure_sharpness,
            2 * len(sharpness.CLAIMS) + len(sharpness.COSTS),
            "learning rate",
            [
                {"budget": EPOCHS, "method": "SAM", "metric": "digits: test accuracy", "value": 30.5},
                # with equal time a method whose steps cost 2 makes half of the base's 30 steps
                {"budget": TIME, "method": "SAM", "metric": "digits: test accuracy", "value": 15.5},
            ],
        ),
        (
            make_quantization_table,
            measure_low_bits,
            len(quantization.CLAIMS),
            "scikit-learn",
            [{"claim": "at least 8 points higher than PTQ", "difference": 1.0, "verdict": "holds"}],
        ),
        (
            lambda folder: udim.make_table(folder, quick=True, workers=1)[:2],
            measure_udim,
            len(udim.CLAIMS),
            "",
            [
                {"control_value": 0.2001, "verdict": "holds"},
                {"control_value": 0.30025, "verdict": "holds"},
                {"control_value": 1.0005, "verdict": "does not hold here"},
            ],
        ),
        (
            lambda folder: useful.make_table(folder, quick=True, workers=1)[:2],
            measure_useful,
            len(useful.CLAIMS),
            "3 to 3 epochs and named 11% of the examples slow",
            [
                # 0.95, 0.94 and 0.93
                {"value": 0.94, "control": "bound", "control_value": 0.9, "verdict": "holds", "seeds": 3},
                {"control_value": 0.8, "difference": 0.14},
                {"metric": "digits: test error", "control": "random copy", "difference": -0.01},
                {"metric": "digits: test error", "control": "base", "difference": -0.02, "budget": "equal epochs"},
            ],
        ),
    ],
    ids=["sharpness", "quantization", "udim", "useful"],
)
def test_every_claim_has_a_row_and_the_table_is_read_back(
    make_table: Callable[[Path], tuple[list[dict[str, Any]], str]],
    measure: Callable[[Run], Measured],
    count: int,
    about: str,
    expected: list[dict[str, Any]],
    tmp_path: Path,
    replace_training: Replace,
) -> None:
    replace_training(measure)
    rows, description = make_table(tmp_path)
    assert len(rows) == count
    assert about in description
    for part in expected:
        assert any(part.items() <= row.items() for row in rows if not isinstance(part, str)), part
    write_result(tmp_path / "a.json", rows, title="A", about=description, measured_at="abc")
    assert read_result(tmp_path / "a.json")["rows"] == rows


def test_domain_generalization_joins_the_rows_of_both_methods(tmp_path: Path, replace_training: Replace) -> None:
    replace_training(lambda run: measure_udim(run) if run.method in udim.METHODS else measure_useful(run))
    replace_training(lambda run: {**measure_udim(run), **measure_useful(run)})
    rows, about, commits = domain_generalization.join_tables(
        tmp_path, domain_generalization.METHODS, quick=True, workers=1
    )
    assert [row["method"] for row in rows] == [claim.method for claim, _ in (*udim.CLAIMS, *useful.CLAIMS)]
    assert about.startswith(f"UDIM: {udim.ABOUT} USEFUL: ")
    assert commits == {"abc"}


def test_every_method_has_a_claim_measured_in_its_setting_on_enough_seeds() -> None:
    assert {claim.method for claim in sharpness.CLAIMS} == set(MEMBERS) - {"base"}
    assert all({claim.method, claim.control} <= set(METHODS[claim.setting]) for claim in sharpness.CLAIMS)
    assert {claim.method for claim in sharpness_acdc.CLAIMS} == set(sharpness_acdc.VALUES) - {"base"}
    assert set(sharpness_acdc.VALUES) <= set(MEMBERS)
    assert min(SEEDS["digits"], udim.SEEDS, useful.SEEDS // 2) >= 10
    compared = {(claim.control, claim.metric, claim.margin) for claim, _ in useful.CLAIMS if claim.method == "USEFUL"}
    assert {("random copy", useful.SLOW_ERROR, 0.0), ("random copy", useful.SLOW_ERROR, 0.005)} <= compared


def test_the_cost_of_a_step_is_judged_by_its_rounds() -> None:
    cost = {name: [1.3, 1.31, 1.32] for name in sharpness.COSTS} | {"base": [1.0, 1.0, 1.0]}
    verdicts = {row["method"]: row["verdict"] for row in sharpness.make_cost_rows(cost)}
    assert (verdicts["MESA"], verdicts["LookSAM(5)"]) == ("holds", "does not hold here")


def test_patients_are_paired_after_the_mean_over_seeds(refused: Any) -> None:
    runs = {name: [Run("acdc", name, None, 0.001, 10, seed, "test") for seed in (0, 1)] for name in ("SAM", "base")}
    sam = dict(zip(runs["SAM"], ({"p1": 0.9, "p2": 0.7}, {"p1": 0.7, "p2": 0.7}), strict=True))
    row = make_patient_row(sharpness_acdc.CLAIMS[0], runs, sam | dict.fromkeys(runs["base"], {"p1": 0.6, "p2": 0.6}))
    # differences 0.2 and 0.1: mean 0.15, half width 12.7062 * 0.05
    assert (row["difference"], row["seeds"]) == (0.15, 2)
    assert row["interval"] == [pytest.approx(0.15 - 0.63531, abs=1e-4), pytest.approx(0.15 + 0.63531, abs=1e-4)]
    with refused("--out"):
        make_patient_row(sharpness_acdc.CLAIMS[0], runs, sam | dict.fromkeys(runs["base"], {"p1": 0.6}))
