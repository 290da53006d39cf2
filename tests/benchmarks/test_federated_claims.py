"""Tests of the claims about decentralized training on digits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.claims import federated, federated_plan
from benchmarks.claims.digits import load_test_set
from benchmarks.claims.federated_plan import BUDGETS, ROUNDS, TRAFFIC, TUNED_ON, FederatedPlan, count_rounds
from benchmarks.claims.federated_runs import (
    CONSENSUS,
    CONTRACTION,
    DFEDAVG,
    DFEDSAM,
    DISTANCE,
    DPSGD,
    FEDAVG,
    FEDSAM,
    FOUR,
    LOCAL,
    MEAN,
    METHODS,
    SENT,
    SETTINGS,
    SLOPE,
    TRAINING,
    TWO,
    WORST,
    build_simulation,
    draw_clients,
    draw_images,
    list_scored_rounds,
    perform,
)
from benchmarks.claims.run_log import Measured, Run
from benchmarks.result_file import read_result

pytest.importorskip("sklearn")
NUMBERS = (MEAN, WORST, CONSENSUS, DISTANCE, SLOPE, SENT, CONTRACTION)
RING = next(iter(SETTINGS))
Replace = Callable[[Callable[[Run], Measured]], None]


def make_run(method: str, *, rounds: int, setting: str = RING, measures: str = "test") -> Run:
    rho = None if method in (DPSGD, DFEDAVG, FEDAVG, LOCAL) else 0.1
    return Run(setting, method, rho, 0.2, rounds, 3, measures)


def measure(run: Run) -> Measured:
    """Return numbers from method, rate and seed; the methods of SAM are better."""
    accuracy = 0.9 - abs(run.lr - 0.4) + 0.01 * (run.value is not None) + 0.001 * run.seed
    slope = 0.02 if run.method == DPSGD else -0.004
    values = (accuracy, accuracy - 0.1, accuracy + 0.05, 0.5 - 0.1 * METHODS[run.method].gossip_steps, slope, 1.0, 0.3)
    return dict(zip(NUMBERS, values, strict=True))


def test_every_setting_and_method_of_the_protocol_is_compared_at_both_budgets() -> None:
    splits = {(each.clients, each.alpha, each.topology.__name__) for each in SETTINGS.values()}
    graphs = ("ring", "torus", "exponential")
    assert splits == {(16, alpha, graph) for alpha in (0.3, 0.6) for graph in graphs} | {(64, 0.3, "exponential")}
    for setting in SETTINGS:
        for control in (DPSGD, DFEDAVG):
            assert (setting, DFEDSAM, control, federated.BOTH) in federated.COMPARISONS
            for budget in BUDGETS:
                assert {(setting, method, control, budget) for method in (TWO, FOUR)} <= {*federated.COMPARISONS}
    assert federated_plan.SEEDS == 5
    assert METHODS[DPSGD].local_steps == 1 < METHODS[DFEDAVG].local_steps


@pytest.mark.parametrize("setting", SETTINGS)
def test_with_equal_traffic_q_gossip_steps_have_one_qth_of_the_rounds(setting: str) -> None:
    for method in (DPSGD, DFEDAVG, DFEDSAM, TWO, FOUR):
        steps = METHODS[method].gossip_steps
        assert count_rounds(setting, method, ROUNDS) == SETTINGS[setting].rounds
        assert count_rounds(setting, method, TRAFFIC) * steps == SETTINGS[setting].rounds
        assert federated.find_arm(setting, method, TRAFFIC)[2] == (ROUNDS if steps == 1 else TRAFFIC)
        assert federated.find_arm(setting, method, federated.BOTH)[2] == ROUNDS


def test_arms_of_equal_traffic_send_equal_bytes() -> None:
    sent = {
        method: perform(make_run(method, rounds=rounds))[SENT] for method, rounds in ((DPSGD, 4), (TWO, 2), (FOUR, 1))
    }
    bytes_per_model = 4 * (64 * 32 + 32 + 32 * 10 + 10)
    assert sent == dict.fromkeys(sent, pytest.approx(4 * 16 * 2 * bytes_per_model / 1e6))
    assert perform(make_run(FOUR, rounds=2))[SENT] == pytest.approx(2 * sent[FOUR])


def test_clients_share_the_training_images_and_have_none_of_the_test_or_validation_images() -> None:
    images, labels = load_test_set()
    for seed in (0, 1000):
        training, validation = draw_images(seed, validate=True)
        same, test = draw_images(seed, validate=False)
        assert torch.equal(test.images, images.flatten(1))
        assert torch.equal(test.labels, labels)
        assert torch.equal(same.images, training.images)
        parts = [{image.numpy().tobytes() for image in each.images} for each in (training, validation, test)]
        assert not (parts[0] & parts[1])
        assert not (parts[0] & parts[2])
        assert not (parts[1] & parts[2])
        assert (len(training.labels), len(validation.labels), len(test.labels)) == (640, 357, 800)
        for setting in SETTINGS:
            clients = draw_clients(setting, seed, training)
            assert sum(client.size for client in clients) == TRAINING
            assert min(client.size for client in clients) >= 2
            assert [client.size for client in draw_clients(setting, seed, training)] == [each.size for each in clients]


def test_methods_with_one_seed_begin_with_equal_weights_and_batches() -> None:
    training, _ = draw_images(3, validate=False)
    first, second = (build_simulation(make_run(method, rounds=1), training) for method in (DPSGD, FEDSAM))
    assert torch.equal(first.weights, second.weights)
    for one, other in zip(first.clients, second.clients, strict=True):
        assert torch.equal(next(iter(one.batches(1)))[0], next(iter(other.batches(1)))[0])
    assert second.method.topology.matrix(0).toarray()[5] * TRAINING == pytest.approx(
        [each.size for each in first.clients]
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_run_measures_finite_numbers_and_the_same_numbers_again(method: str) -> None:
    run = make_run(method, rounds=1)
    measured = perform(run)
    assert perform(run) == measured
    assert tuple(measured) == NUMBERS
    assert torch.tensor(list(measured.values())).isfinite().all()
    assert measured[WORST] <= measured[MEAN]
    bound = federated.find_bound(RING, method)
    expected = {FEDAVG: 0.0, FEDSAM: 0.0, LOCAL: 1.0}.get(method)
    if bound is None:
        assert measured[CONTRACTION] == pytest.approx(expected, abs=1e-6)
    else:
        assert 0 < measured[CONTRACTION] <= bound + 1e-6


def test_a_trial_is_trained_the_same_and_scored_on_other_images() -> None:
    trial, final = (perform(make_run(FOUR, rounds=2, measures=measures)) for measures in ("validation", "test"))
    assert (trial[DISTANCE], trial[SENT]) == (final[DISTANCE], final[SENT])
    for measured, images, others in ((trial, 357, 800), (final, 800, 357)):
        right, wrong = measured[MEAN] * 16 * images, measured[MEAN] * 16 * others
        assert right == pytest.approx(round(right), abs=1e-6)
        assert wrong != pytest.approx(round(wrong), abs=1e-6)


def test_ten_rounds_of_the_last_fifth_are_scored() -> None:
    assert list_scored_rounds(37) == [30, 31, 32, 33, 34, 35, 36, 37]
    assert list_scored_rounds(1) == [1]
    for rounds in (50, 100, 144, 200):
        scored = list_scored_rounds(rounds)
        assert (len(scored), scored[-1]) == (10, rounds)
        assert scored[0] > 0.8 * rounds - 1


def test_every_method_has_as_many_trials_on_validation_images_of_other_seeds(
    tmp_path: Path, replace_training: Replace
) -> None:
    replace_training(measure)
    plan = FederatedPlan(tmp_path, quick=False, workers=1)
    numbers = plan.tune()
    trials = list(plan.log.measured)
    assert {run.measures for run in trials} == {"validation"}
    assert {run.setting for run in trials} == {TUNED_ON}
    assert not {run.seed for run in trials} & set(range(federated_plan.SEEDS))
    counts = {
        (name, rounds): sum((run.method, run.steps) == (name, rounds) for run in trials)
        for name, method in METHODS.items()
        for rounds in (count_rounds(TUNED_ON, name, budget) for budget in BUDGETS)
        if method.trials
    }
    assert set(counts.values()) == {8}
    assert len({len(method.trials) for method in METHODS.values() if method.trials}) == 1
    assert numbers[DPSGD, ROUNDS] == (0.4, None), "the best rate"
    assert numbers[FOUR, TRAFFIC] == (0.4, 0.1), "the first of equals"
    assert (numbers[FEDSAM, ROUNDS], numbers[LOCAL, ROUNDS]) == (numbers[DFEDSAM, ROUNDS], numbers[DFEDAVG, ROUNDS])


def test_both_tables_are_written_with_verdicts_and_the_arms_that_are_not_flat(
    tmp_path: Path, replace_training: Replace, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_training(measure)
    monkeypatch.setattr(federated, "print_rows", list)
    federated.main(["--out", str(tmp_path), "--json", str(tmp_path / "federated.json")])
    result, arms = (read_result(tmp_path / name) for name in ("federated.json", "federated_arms.json"))
    assert result["commit"] == arms["commit"] == "abc"
    assert len(result["rows"]) == len(federated.COMPARISONS)
    assert f"{len(SETTINGS)} of {len(arms['rows'])} arms are not flat." in result["about"]
    by_side = {(row["setting"], row["method"], row["control"], row["budget"]): row for row in result["rows"]}
    row = by_side[RING, FOUR, DPSGD, TRAFFIC]
    assert (row["both flat"], row["seeds"]) == (False, 5)
    assert row[f"{MEAN}: higher"] == row[f"{DISTANCE}: lower"] == "holds"
    assert row[f"{DISTANCE}: interval"] == [pytest.approx(-0.3), pytest.approx(-0.3)]
    row = by_side[RING, FOUR, DFEDSAM, ROUNDS]
    assert row["both flat"]
    assert (row[f"{WORST}: higher"], row[f"{DISTANCE}: lower"]) == ("not distinguishable", "holds")
    lengths = {(row["method"], row["budget"]): row["rounds"] for row in arms["rows"] if row["setting"] == RING}
    assert lengths[FOUR, ROUNDS] == 4 * lengths[FOUR, TRAFFIC] == lengths[DPSGD, federated.BOTH]
    arm = next(row for row in arms["rows"] if (row["setting"], row["method"]) == (RING, TWO))
    assert (arm["learning rate"], arm["rho"], arm["flat"]) == (0.4, 0.1, True)
    assert arm["lambda^Q"] == pytest.approx(0.9493**2, abs=1e-4)


@pytest.mark.slow
def test_a_quick_run_of_the_command_makes_every_arm_and_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--out", str(tmp_path), "--quick", "--json", str(tmp_path / "federated.json")]
    federated.main(arguments)
    first = (tmp_path / "federated.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = read_result(tmp_path / "federated.json")["rows"]
    assert len(rows) == len(federated.COMPARISONS)
    monkeypatch.setattr(federated_plan, "perform", None)
    federated.main(arguments)
    assert (tmp_path / "federated.json").read_text(encoding="utf-8") == first
