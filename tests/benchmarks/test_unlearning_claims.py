"""Tests of the claims about unlearning on digits and text."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.claims import text, unlearning, unlearning_plan, unlearning_runs
from benchmarks.claims.run_log import Measured, Run
from benchmarks.claims.unlearning_plan import RATES, UnlearningPlan, average_rows, choose_trial, hash_protocol, widen
from benchmarks.claims.unlearning_runs import (
    ALL_FORGET,
    ARMS,
    BEFORE,
    BUDGETS,
    CHANCE,
    DIVERGENCE,
    FORGET,
    FORGET_LOSS,
    LIRA,
    MEMBERSHIP,
    PAST,
    REFERENCES,
    RETAINED,
    RETRAINED,
    RISE,
    ROWS,
    SHADOWS,
    SWEEP,
    TEST,
    TRIAL,
    TRIALS,
    UNSEEN,
    WEIGHTS,
    after,
    draw_halves,
    find_numbers,
    make_network,
    measure_attack,
    name_rates,
    perform,
    train_network,
)
from benchmarks.claims.unlearning_sets import (
    DIGITS,
    FIRST_TUNING_SEED,
    PASSAGES,
    UNLEARNING_SETTINGS,
    Samples,
    draw_digits,
    draw_passages,
)
from benchmarks.result_file import read_result
from uumamba.unlearning import RelearningResult, RelearningRow

pytest.importorskip("sklearn")
Replace = Callable[[Callable[[Run], Measured]], None]
STEPS = {DIGITS: 2, PASSAGES: 1}
ATTACKED = (FORGET, FORGET_LOSS, UNSEEN)
NUMBERS = {
    *ATTACKED,
    *(after(name, budget) for name in (*ATTACKED, RISE) for budget in BUDGETS),
    *(RETAINED, DIVERGENCE, WEIGHTS, MEMBERSHIP, CHANCE, LIRA),
}


@pytest.fixture(autouse=True)
def _start_text_from_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.claims.unlearning_sets.pretrain", text.CharacterNet().state_dict)


def make_run(method: str, measures: str, *, setting: str = DIGITS, seed: int = 3, steps: int | None = None) -> Run:
    trial = None if method in REFERENCES else 10.0
    lr = 0.0 if trial is None else find_numbers(setting, method, 10).lr
    return Run(setting, method, trial, lr, steps or STEPS[setting], seed, measures)


def list_inputs(samples: Samples) -> set[bytes]:
    return {each.numpy().tobytes() for each in samples.inputs}


@pytest.mark.parametrize(
    ("draw", "sizes", "unseen"),
    [(draw_digits, (20, 60, 160), {0: 800, FIRST_TUNING_SEED: 517}), (draw_passages, (8, 24, 96), {0: 128, 1000: 128})],
)
def test_parts_are_disjoint_and_unseen_samples_of_trials_are_others_than_those_of_tests(
    draw: Callable[[int], Any], sizes: tuple[int, ...], unseen: dict[int, int]
) -> None:
    inputs = {}
    for seed, count in unseen.items():
        task = draw(seed)
        parts = [task.known, task.hidden, task.retain, task.unseen]
        assert tuple(map(len, parts)) == (*sizes, count)
        found = [list_inputs(each) for each in parts]
        assert sum(map(len, found)) >= len(set().union(*found)) >= sum(map(len, found)) - 1  # a repeated piece of text
        assert torch.equal(task.forget.inputs, torch.cat([task.known.inputs, task.hidden.inputs]))
        inputs[seed] = found[3]
    assert not inputs[0] & inputs[FIRST_TUNING_SEED]
    assert not torch.equal(draw(1).forget.inputs, draw(0).forget.inputs)


def test_digits_of_every_class_are_forgotten_and_retained_and_others_are_apart() -> None:
    task = draw_digits(0)
    assert task.others is not None
    for part in (task.forget, task.retain, task.others, task.unseen):
        assert int(part.labels.bincount(minlength=10).min()) > 0
    trained = list_inputs(task.forget) | list_inputs(task.retain)
    assert len(task.others) == len(trained) == 240
    assert not list_inputs(task.others) & trained
    assert float(task.unseen.inputs.std()) == pytest.approx(float(task.retain.inputs.std()), rel=0.05), "all have noise"


def test_the_attacker_knows_the_first_quarter_of_each_passage() -> None:
    training, _ = text.load_domain("reference")
    characters = "".join(text.CHARACTERS[index] for index in training.tolist())
    task = draw_passages(0)
    for passage in range(4):
        pieces = [*task.known.inputs[2 * passage :][:2], *task.hidden.inputs[6 * passage :][:6]]
        assert "".join(text.CHARACTERS[index] for index in torch.cat(pieces).tolist()) in characters
    assert torch.equal(task.known.inputs[:, 1:], task.known.labels[:, :-1])


def test_every_arm_has_as_many_trials_at_the_same_points() -> None:
    shared = {
        setting: {
            name: [(each.lr, each.beta, each.retain_weight) for each in list_trials(setting, name)] for name in ARMS
        }
        for setting in UNLEARNING_SETTINGS
    }
    for setting, found in shared.items():
        assert all(trials == found["NPO"] for trials in found.values())
        assert len(set(found["NPO"])) == TRIALS == 16
        low, high = UNLEARNING_SETTINGS[setting].lrs
        assert all(low < lr < high for lr, _, _ in found["NPO"])
    own = [each.own for each in list_trials(DIGITS, "NPO+SAM")]
    assert 0.003 < min(own) < 0.005
    assert 0.07 < max(own) < 0.1


def list_trials(setting: str, method: str) -> list[Any]:
    return [find_numbers(setting, method, trial) for trial in range(TRIALS)]


@pytest.mark.parametrize(
    ("setting", "method"), [*((DIGITS, name) for name in (*REFERENCES, *ARMS)), (PASSAGES, "NPO+CR")]
)
def test_a_run_measures_finite_numbers_and_the_same_numbers_again(setting: str, method: str) -> None:
    run = make_run(method, name_rates(TEST, (1e-3,) if setting == PASSAGES else (1e-3, 1e-2)), setting=setting)
    measured = perform(run)
    assert perform(run) == measured
    assert set(measured) == NUMBERS
    assert (measured.pop(LIRA) is None) == (setting == PASSAGES)
    assert torch.tensor(list(measured.values())).isfinite().all()
    quality = [measured[FORGET], *(measured[after(FORGET, budget)] for budget in BUDGETS)]
    assert quality == sorted(quality), "an attacker may stop earlier"
    assert measured[after(RISE, 50)] == pytest.approx(quality[-1] - quality[0])
    assert measured[CHANCE] == abs(measured[MEMBERSHIP] - 0.5)
    assert (measured[WEIGHTS] == 0) == (method == RETRAINED)


def test_methods_of_a_seed_begin_with_the_same_network_and_differ_by_their_own_number() -> None:
    nets = {name: make_network(make_run(name, TRIAL)) for name in (BEFORE, *ARMS)}
    weights = {name: torch.cat([param.detach().flatten() for param in net.parameters()]) for name, net in nets.items()}
    assert len({tuple(each.tolist()) for each in weights.values()}) == len(nets)
    assert torch.equal(weights[BEFORE], flatten(train_network(DIGITS, 3, STEPS[DIGITS], False))), "it is not changed"
    distances = {name: float((each - weights[BEFORE]).norm()) for name, each in weights.items()}
    assert distances["NPO+WA"] < distances["NPO"], "an average is closer to the start"


def flatten(net: torch.nn.Module) -> Tensor:
    return torch.cat([param.detach().flatten() for param in net.parameters()])


def test_a_network_is_retrained_without_the_samples_to_forget(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[bytes]] = {}
    draw = Samples.draw_batch

    def record(samples: Samples, size: int, *key: Any) -> tuple[Tensor, Tensor]:
        seen.setdefault(key[1], set()).update(list_inputs(samples))
        return draw(samples, size, *key)

    monkeypatch.setattr(Samples, "draw_batch", record)
    for is_retrained in (False, True):
        train_network.__wrapped__(DIGITS, 5, 1, is_retrained)
    task = draw_digits(5)
    assert seen["retrained"] == list_inputs(task.retain)
    assert seen["trained"] == list_inputs(task.retain) | list_inputs(task.forget)


def test_the_attacker_trains_on_the_known_samples_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Any] = []
    relearn = unlearning_runs.relearning_attack

    def record(net: torch.nn.Module, given: Any, *rest: Any, **options: Any) -> RelearningResult:
        batches.extend(given)
        return relearn(net, given, *rest, **options)

    monkeypatch.setattr(unlearning_runs, "relearning_attack", record)
    perform(make_run(BEFORE, name_rates(SWEEP, (1e-3,))))
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), draw_digits(3).known.inputs)


def test_measures_after_the_attack_are_those_of_its_strongest_row() -> None:
    qualities = {(0, 0.0): 0.3, (5, 0.1): 0.6, (15, 0.1): 0.5, (50, 0.1): math.nan, (5, 1.0): 0.2, (15, 1.0): 0.7}
    rows = tuple(RelearningRow(*key, quality) for key, quality in qualities.items())
    others = [{FORGET_LOSS: float(place), UNSEEN: place / 10} for place in range(len(rows))]
    measured = measure_attack(RelearningResult(rows), others)
    assert (measured[FORGET], measured[FORGET_LOSS]) == (0.3, 0.0)
    assert [measured[after(FORGET, budget)] for budget in BUDGETS] == [0.6, 0.7, 0.7]
    assert [measured[after(FORGET_LOSS, budget)] for budget in BUDGETS] == [1.0, 5.0, 5.0]
    assert measured[after(RISE, 15)] == pytest.approx(0.4)


def test_halves_of_shadow_models_hold_each_sample_equally_often() -> None:
    halves = torch.stack(list(draw_halves(480, 0)))
    assert halves.shape == (SHADOWS, 480)
    assert halves.sum(0).unique().tolist() == [SHADOWS // 2]
    assert halves.sum(1).unique().tolist() == [240]


@pytest.mark.slow
def test_memorised_digits_are_members_until_a_network_is_retrained() -> None:
    steps = UNLEARNING_SETTINGS[DIGITS].steps
    before, retrained = (perform(make_run(name, name_rates(TEST, (1e-3,)), steps=steps)) for name in REFERENCES)
    assert before[FORGET] == before[RETAINED] == retrained[RETAINED] == 1.0
    assert before[MEMBERSHIP] > 0.7 > 0.6 > retrained[MEMBERSHIP] > 0.4
    assert before[LIRA] > 0.75 > 0.6 > retrained[LIRA] > 0.4
    assert retrained[FORGET] < 0.8
    assert retrained[DIVERGENCE] < 1e-6 < 0.01 < before[DIVERGENCE]


def make_trial(forget: float, retained: float, unseen: float) -> Measured:
    return {ALL_FORGET: forget, RETAINED: retained, PAST: 1.0, UNSEEN: unseen}


@pytest.mark.parametrize(
    ("trials", "expected"),
    [
        ([(0.5, 0.99, 0.5), (0.1, 1.0, 0.6), (0.7, 1.0, 0.69), (0.1, 0.98, 0.8)], (1, True)),
        ([(0.9, 1.0, 0.6), (0.7, 0.95, 0.6)], (1, False)),
        ([(0.5, 1.0, 0.6), (0.4, 1.0, 0.6)], (0, True)),
    ],
    ids=["the most useful of those admitted", "the smallest excess", "the first of equals"],
)
def test_a_trial_is_chosen_by_forgetting_retained_and_unseen_accuracy(
    trials: list[tuple[float, float, float]], expected: tuple[int, bool]
) -> None:
    assert choose_trial([make_trial(*each) for each in trials]) == expected


def make_rows(strongest: float, rates: tuple[float, ...]) -> list[list[float]]:
    """Return rows whose quality falls with the distance of the rate from the strongest, in decades."""
    found = [[budget, rate, 0.9 - 0.1 * abs(math.log10(rate / strongest))] for rate in rates for budget in BUDGETS]
    return [[0, 0.0, 0.1], *found]


def test_a_sweep_is_widened_beyond_the_edge_of_its_strongest_rate() -> None:
    def sweep(strongest: float) -> RelearningResult:
        return average_rows([make_rows(strongest, RATES)] * 2)

    assert widen(RATES, sweep(0.003)) == RATES
    assert widen(RATES, sweep(0.2)) == (*RATES, 0.0949)
    assert widen(RATES, sweep(1e-5)) == (9.49e-05, *RATES)


def test_rows_are_averaged_over_seeds_and_a_diverged_rate_is_never_the_strongest() -> None:
    first, second = [[0, 0.0, 0.1], [5, 0.1, 0.4], [5, 1.0, 0.9]], [[0, 0.0, 0.3], [5, 0.1, 0.6], [5, 1.0, math.nan]]
    result = average_rows([first, second])
    assert (result.rows[0].quality, result.strongest(5).quality, result.strongest(5).rate) == (0.2, 0.5, 0.1)


def measure(run: Run) -> Measured:
    """Return numbers in which smoothed arms relearn less, and SAM loses retained accuracy."""
    kind, *rates = run.measures.split()
    if kind == TRIAL:
        return make_trial(0.4, 1.0, 0.5 + 0.01 * (run.value == 7))
    if kind == SWEEP:
        return {ROWS: make_rows(0.1 if run.method == "NPO+GP" else 0.003, tuple(map(float, rates)))}
    numbers = dict.fromkeys(NUMBERS, 0.5 - 0.1 * ("+" in run.method) + 0.001 * run.seed)
    return (
        numbers | {RETAINED: 0.9 if run.method == "NPO+SAM" else 1.0} | ({LIRA: None} if run.setting != DIGITS else {})
    )


def test_trials_and_sweeps_use_other_seeds_and_the_strongest_rates_attack_the_test_seeds(
    tmp_path: Path, replace_training: Replace
) -> None:
    replace_training(measure)
    plan = UnlearningPlan(tmp_path, quick=False, workers=1)
    arms = plan.measure()
    kinds = {
        kind: [run for run in plan.log.measured if run.measures.split()[0] == kind] for kind in (TRIAL, SWEEP, TEST)
    }
    assert {run.seed for kind in (TRIAL, SWEEP) for run in kinds[kind]} == {1000, 1001}
    assert {run.seed for run in kinds[TEST]} == set(range(5))
    trials = Counter((run.setting, run.method) for run in kinds[TRIAL])
    assert trials == {(setting, name): 2 * TRIALS for setting in UNLEARNING_SETTINGS for name in ARMS}
    assert len(arms) == 2 * (len(ARMS) + len(REFERENCES))
    assert {arms[key].runs[0].value for key in arms if key[1] in ARMS} == {7.0}, "the most useful trial"
    assert arms[DIGITS, "NPO"].rates == (0.003,) * 3
    assert arms[DIGITS, "NPO+GP"].rates == (0.0949,) * 3, "widened"
    assert not any(arm.is_at_edge for arm in arms.values())
    assert arms[DIGITS, "NPO+GP"].runs[0].measures == "test 0.0949"


def test_a_changed_number_of_the_protocol_starts_a_new_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hash_protocol()
    assert UnlearningPlan(tmp_path, quick=False, workers=1).log.path.parent == tmp_path / before[:12]
    monkeypatch.setattr(unlearning_plan, "ALLOWED", 0.02)
    after_first = hash_protocol()
    monkeypatch.setattr(unlearning_runs, "RETAIN_WEIGHTS", (0.5, 2.0))
    assert len({before, after_first, hash_protocol()}) == 3


def test_both_tables_are_written_with_verdicts_and_a_word_on_retained_accuracy(
    tmp_path: Path, replace_training: Replace, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_training(measure)
    monkeypatch.setattr(unlearning, "print_rows", list)
    unlearning.main(["--out", str(tmp_path), "--json", str(tmp_path / "unlearning.json")])
    result, arms = (read_result(tmp_path / name) for name in ("unlearning.json", "unlearning_arms.json"))
    assert result["commit"] == arms["commit"] == "abc"
    assert hash_protocol()[:12] in result["about"]
    assert len(result["rows"]) == 2 * len(unlearning.PAIRS) * len(unlearning.METRICS)
    rows = {(row["metric"], row["method"], row["budget"]): row for row in result["rows"]}
    row = rows[f"{DIGITS}: {FORGET}", "NPO+RS", "attack of 15 steps"]
    assert row["interval"] == [pytest.approx(-0.1), pytest.approx(-0.1)]
    assert (row["verdict"], row["retained accuracy"], row["seeds"]) == ("holds", "equal", 5)
    assert rows[f"{PASSAGES}: {RISE}", "NPO+SAM", "attack of 50 steps"]["retained accuracy"] == "lower"
    found = {(row["setting"], row["method"]): row for row in arms["rows"]}
    assert found[DIGITS, RETRAINED]["learning rate"] is None
    assert found[DIGITS, "NPO"][LIRA] == pytest.approx(0.502)
    assert found[PASSAGES, "NPO"][LIRA] is None
    assert found[DIGITS, "GradDiff"]["beta"] is None
    assert found[DIGITS, "NPO+SAM"]["own number"].startswith("rho 0.0")
    assert found[DIGITS, "NPO+GP"]["attacker's rates"] == [0.0949] * 3


@pytest.mark.slow
def test_a_quick_run_of_the_command_makes_every_arm_and_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--out", str(tmp_path), "--quick", "--json", str(tmp_path / "unlearning.json")]
    unlearning.main(arguments)
    first = (tmp_path / "unlearning.json").read_text(encoding="utf-8")
    assert len(read_result(tmp_path / "unlearning.json")["rows"]) == len(unlearning.PAIRS) * len(unlearning.METRICS)
    monkeypatch.setattr(unlearning_plan, "perform", None)
    unlearning.main(arguments)
    assert (tmp_path / "unlearning.json").read_text(encoding="utf-8") == first
