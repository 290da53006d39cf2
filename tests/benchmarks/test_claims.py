"""Tests of intervals, verdicts, measures, run log and tables of the claims."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call

from benchmarks.claims import domain_generalization, quantization, sharpness, sharpness_acdc, udim, useful
from benchmarks.claims.claim_table import Claim, find_best_value, make_claim_row
from benchmarks.claims.equal_time import compute_ratios, compute_steps, time_in_rounds
from benchmarks.claims.intervals import compute_interval, judge_interval
from benchmarks.claims.measures import accuracy, largest_eigenvalue, perplexity, surrogate_gap
from benchmarks.claims.members import MEMBERS
from benchmarks.claims.plan import EPOCHS, METHODS, SEEDS, TIME, Plan
from benchmarks.claims.run_log import Measured, Run, RunLog
from benchmarks.claims.settings import SETTINGS
from benchmarks.result_file import read_result, write_result
from uumamba.runtime.files import write_json


def test_the_interval_of_paired_differences_is_student_s(refused: Any) -> None:
    # mean 3, variance 10 / 4, standard error sqrt(2.5 / 5); t of 4 degrees of freedom at 97.5 % is 2.776445 in tables
    half = 2.776445 * math.sqrt(0.5)
    assert compute_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3 - half, 3 + half), abs=1e-5)
    assert compute_interval([0.25, 0.25, 0.25]) == (0.25, 0.25)
    with refused("differences", got=1):
        compute_interval([1.0])


@pytest.mark.parametrize(
    ("interval", "better", "margin", "expected"),
    [
        ((0.01, 0.03), "higher", 0.0, "holds"),
        ((-0.03, -0.01), "higher", 0.0, "does not hold here"),
        ((-0.01, 0.03), "higher", 0.0, "not distinguishable"),
        ((0.0, 0.03), "higher", 0.0, "not distinguishable"),
        ((-0.03, -0.01), "lower", 0.0, "holds"),
        ((0.01, 0.03), "lower", 0.0, "does not hold here"),
        ((-0.01, 0.03), "lower", 0.0, "not distinguishable"),
        ((-0.004, 0.01), "higher", 0.005, "holds"),
        ((-0.02, -0.006), "higher", 0.005, "does not hold here"),
        ((-0.02, 0.006), "higher", 0.005, "not distinguishable"),
        ((0.1, 0.2), "lower", 0.25, "holds"),
        ((0.3, 0.4), "lower", 0.25, "does not hold here"),
    ],
)
def test_a_verdict_follows_from_interval_direction_and_margin(
    interval: tuple[float, float], better: str, margin: float, expected: str
) -> None:
    assert judge_interval(interval, better, margin=margin) == expected


def test_a_row_pairs_its_values_and_has_the_keys_of_the_schema() -> None:
    claim = Claim("SAM", "base", "test accuracy", "higher")
    row = make_claim_row(claim, [0.9, 0.94], [0.8, 0.9], budget="equal time")
    # differences 0.1 and 0.04: half width 12.7062 * 0.03
    interval = [pytest.approx(0.07 - 0.381186, abs=1e-5), pytest.approx(0.07 + 0.381186, abs=1e-5)]
    assert list(row.items()) == [
        *{"method": "SAM", "claim": "higher than base", "metric": "digits: test accuracy"}.items(),
        *{"budget": "equal time", "value": 0.92, "control": "base", "control_value": 0.85}.items(),
        *{"difference": 0.07, "interval": interval, "seeds": 2, "verdict": "not distinguishable"}.items(),
    ]
    with pytest.raises(ValueError, match="zip"):
        make_claim_row(claim, [0.9, 0.94], [0.8], budget="equal time")


def test_a_claim_describes_its_direction_and_margin() -> None:
    assert Claim("A", "B", "accuracy", "higher", margin=0.005).describe() == "not lower than B by 0.005 or more"
    assert Claim("A", "B", "error", "lower", margin=0.1).describe() == "not higher than B by 0.1 or more"


def test_a_measure_to_be_lowered_is_tuned_to_its_first_minimum() -> None:
    assert find_best_value({0.05: 2.0, 0.1: 1.0, 0.2: 1.0}, "lower") == 0.1


def test_rounds_alternate_after_a_warm_up_and_the_median_ratio_gives_the_steps() -> None:
    order: list[str] = []
    seconds = time_in_rounds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}
    ratios = compute_ratios({"base": [1.0, 1.0, 2.0], "SAM": [2.0, 2.5, 4.0], "slow": [900.0, 900.0, 1800.0]}, "base")
    assert {name: compute_steps(240, each) for name, each in ratios.items()} == {"base": 240, "SAM": 120, "slow": 1}


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


IMAGES = torch.randn(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.arange(20) % 2


def compute_loss(net: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(net(IMAGES), LABELS)


def test_power_iteration_finds_the_largest_eigenvalue_of_the_full_hessian(net: nn.Module) -> None:
    params = dict(net.named_parameters())
    sizes = [param.numel() for param in params.values()]

    def compute_loss_at(vector: Tensor) -> Tensor:
        parts = zip(params.items(), vector.split(sizes), strict=True)
        logits = functional_call(net, {name: part.view_as(param) for (name, param), part in parts}, (IMAGES,))
        return nn.functional.cross_entropy(logits, LABELS)

    vector = torch.cat([param.detach().flatten() for param in params.values()])
    expected = torch.linalg.eigvalsh(hessian(compute_loss_at, vector))
    found = largest_eigenvalue(net, compute_loss, iterations=2000, tolerance=1e-12)
    assert found == pytest.approx(float(expected[expected.abs().argmax()]), rel=1e-6)


def test_measures_change_neither_network_nor_gradients(net: nn.Module) -> None:
    before = [param.detach().clone() for param in net.parameters()]
    largest_eigenvalue(net, compute_loss)
    surrogate_gap(net, compute_loss, rho=0.1)
    assert net.training
    assert all(param.grad is None for param in net.parameters())
    assert all(torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_surrogate_gap_accuracy_and_perplexity_have_known_values() -> None:
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(net.weight, 3.0)
    # (w + rho)^2 - w^2 at w = 3, rho = 0.5
    assert surrogate_gap(net, lambda each: each.weight.square().sum(), rho=0.5) == pytest.approx(3.25)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    assert accuracy(nn.Identity(), logits, torch.tensor([0, 1, 1])) == pytest.approx(2 / 3)
    uniform = torch.zeros(300, 4, 5)  # more than one part
    assert perplexity(nn.Identity(), uniform, torch.zeros(300, 5, dtype=torch.long)) == pytest.approx(4.0)


def make_run(seed: int, value: float = 0.05) -> Run:
    return Run("digits", "SAM", value, 0.1, 10, seed, "test")


def refuse_run(run: Run) -> Measured:
    raise AssertionError(run)


def test_a_finished_run_is_read_and_an_incomplete_line_is_removed(tmp_path: Path) -> None:
    lines = [{"run": vars(make_run(seed)), "measured": {"seed": seed}, "commit": "abc"} for seed in (0, 1)]
    first, second = (json.dumps(line) for line in lines)
    (tmp_path / "runs.jsonl").write_text(f"{first}\n{second[:40]}", encoding="utf-8")
    log = RunLog(tmp_path)
    assert log.complete([make_run(0)], refuse_run, workers=1) == [{"seed": 0}]
    assert (log.commits, list(log.measured)) == ({"abc"}, [make_run(0)])
    assert make_run(0, value=0.1) not in log.measured
    assert (tmp_path / "runs.jsonl").read_text(encoding="utf-8") == f"{first}\n"


def test_a_missing_run_is_made_in_another_process_and_logged(tmp_path: Path) -> None:
    # `vars` is importable by name in any process
    assert RunLog(tmp_path).complete([make_run(3), make_run(2), make_run(3)], vars, workers=1)[0]["seed"] == 3
    assert {run.seed for run in RunLog(tmp_path).measured} == {2, 3}


Table = tuple[list[dict[str, Any]], str]
METRICS = [claim.metric for claim in (*sharpness.CLAIMS, *(each for each, _ in (*quantization.CLAIMS, *udim.CLAIMS)))]
USEFUL_NAMES = [
    *(f"{metric}, {side}" for metric in useful.BOUNDS for side in ("USEFUL", "USEFUL, logits")),
    *(f"{metric}, {side} examples" for metric in (useful.LEARNED, useful.FORGOTTEN) for side in ("slow", "fast")),
]
ERRORS = {"base": 0.04, "random copy": 0.03, "USEFUL": 0.02}
EQUAL = {"method": "SAM", "metric": "digits: test accuracy"}


def measure(run: Run) -> Measured:
    """Return every number of every table, from method, steps and seed."""
    seed = run.seed - useful.FIRST_SEED
    number = run.steps + run.seed + float(run.method == "LSQ")
    errors = {useful.ERROR: ERRORS.get(run.method, 0.0) + 0.001 * seed, useful.SLOW_ERROR: 0.1 + 0.001 * seed}
    learned = dict.fromkeys(USEFUL_NAMES, 0.95 - 0.01 * seed) | {"epoch": 3, "slow share": 0.11}
    return dict.fromkeys(METRICS, number) | errors | learned


def make_sharpness_table(folder: Path) -> Table:
    for setting in SETTINGS:  # a step costs 1 with the base optimizer, 2 with the others
        write_json(folder / f"step_time_{setting}.json", {name: [2.0 - (name == "base")] * 2 for name in MEMBERS})
    plan = Plan(folder, quick=True, workers=1)
    rows = [row for setting in SETTINGS for row in sharpness.make_claim_rows(plan, setting)]
    return rows, sharpness.describe_table(plan)


def make_quantization_table(folder: Path) -> Table:
    rows = list(quantization.make_claim_rows(RunLog(folder), steps=900, seeds=2, workers=1))
    return rows, quantization.describe_table(900)


def make_digits_table(folder: Path) -> Table:
    methods = domain_generalization.METHODS
    rows, about, commits = domain_generalization.join_tables(folder, methods, quick=True, workers=1)
    assert commits == {"abc"}
    assert about.startswith(f"UDIM: {udim.ABOUT} USEFUL: ")
    return rows, about


@pytest.mark.parametrize(
    ("make_table", "claims", "about", "expected"),
    [
        (
            make_sharpness_table,
            [claim for claim in sharpness.CLAIMS for _ in (EPOCHS, TIME)] + list(sharpness.COSTS),
            "Numbers chosen on validation data of other seeds: digits: learning rate 0.1",
            [EQUAL | {"budget": EPOCHS, "value": 30.5}, EQUAL | {"budget": TIME, "value": 15.5}],
        ),
        (
            make_quantization_table,
            quantization.CLAIMS,
            "600 steps of Adam in full precision and 300 rounded",
            [{"claim": "at least 8 points higher than PTQ", "difference": 1.0, "verdict": "holds"}],
        ),
        (
            make_digits_table,
            (*udim.CLAIMS, *useful.CLAIMS),
            "3 to 3 epochs and named 11% of the examples slow",
            [
                {"value": 85.5, "control_value": 17.1, "verdict": "does not hold here"},  # 0.2 of SAM's
                # 0.95, 0.94 and 0.93
                {"value": 0.94, "control": "bound", "control_value": 0.9, "verdict": "holds", "seeds": 3},
                {"control_value": 0.8, "difference": 0.14},
                {"metric": "digits: test error", "control": "random copy", "difference": -0.01},
                {"metric": "digits: test error", "control": "base", "difference": -0.02, "budget": "equal epochs"},
            ],
        ),
    ],
)
def test_every_claim_has_a_row_and_the_table_is_read_back(
    make_table: Callable[[Path], Table],
    claims: list[Any],
    about: str,
    expected: list[dict[str, Any]],
    tmp_path: Path,
    replace_training: Callable[[Callable[[Run], Measured]], None],
) -> None:
    replace_training(measure)
    rows, description = make_table(tmp_path)
    assert len(rows) == len(claims)
    assert about in description
    assert [part for part in expected if not any(part.items() <= {**row, "interval": 0}.items() for row in rows)] == []
    write_result(tmp_path / "a.json", rows, title="A", about=description, measured_at="abc")
    assert read_result(tmp_path / "a.json")["rows"] == rows


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
