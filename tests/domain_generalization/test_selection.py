from typing import Any

import pytest

from uumamba.domain_generalization import (
    Selection,
    held_out_domains,
    leave_one_domain_out_validation,
    oracle,
    training_domain_validation,
)


def record(
    step: int,
    held: list[int],
    ins: tuple[float, ...],
    outs: tuple[float, ...],
    *,
    setting: str = "",
    trial_seed: int = 0,
) -> dict[str, Any]:
    accuracies = {f"env{i}_in_acc": value for i, value in enumerate(ins)}
    accuracies |= {f"env{i}_out_acc": value for i, value in enumerate(outs)}
    return {"step": step, "test_envs": held, "setting": setting, "trial_seed": trial_seed, **accuracies}


# Domain 0 is the test domain. Its own accuracy peaks at step 200, that of the training domains at step 300.
ALONE = [
    record(100, [0], (0.50, 0.90, 0.90), (0.52, 0.70, 0.60)),
    record(200, [0], (0.80, 0.95, 0.95), (0.85, 0.70, 0.70)),
    record(300, [0], (0.60, 0.99, 0.99), (0.65, 0.90, 0.80)),
    record(400, [0], (0.40, 1.00, 1.00), (0.45, 0.85, 0.80)),
]
# Without domains 0 and 1, domain 1 does best at step 100; without 0 and 2, domain 2 does at 200.
PAIRS = [
    *(record(step, [0, 1], (0, acc, 0), (0, 0, 0)) for step, acc in ((100, 0.9), (200, 0.8), (300, 0.3), (400, 0.2))),
    *(record(step, [0, 2], (0, 0, acc), (0, 0, 0)) for step, acc in ((100, 0.2), (200, 0.7), (300, 0.6), (400, 0.1))),
]


@pytest.mark.parametrize(
    ("rule", "name", "step", "validation", "test"),
    [  # means over domains 1 and 2: out splits 0.65, 0.70, 0.85, 0.825; held out in turn 0.55, 0.75, 0.45, 0.15
        (training_domain_validation, "training-domain validation", 300, 0.85, 0.60),
        (leave_one_domain_out_validation, "leave-one-domain-out cross-validation", 200, 0.75, 0.80),
        (oracle, "oracle (test-domain validation)", 400, 0.45, 0.40),  # the last step
    ],
)
def test_each_rule_selects_the_step_by_hand(rule: Any, name: str, step: int, validation: float, test: float) -> None:
    found = rule([*ALONE, *PAIRS], test_domain=0)
    assert found == Selection(name, rule is oracle, 0, "", step, pytest.approx(validation), test)
    assert str(found).startswith(f"domain 0, {name}: {test:.3f}")


@pytest.mark.parametrize("split", ["in", "out"])
def test_only_the_oracle_depends_on_test_accuracies(split: str) -> None:
    changed = [{**each, f"env0_{split}_acc": 1 - each[f"env0_{split}_acc"]} for each in [*ALONE, *PAIRS]]
    for rule in (training_domain_validation, leave_one_domain_out_validation):
        before, after = rule([*ALONE, *PAIRS], test_domain=0), rule(changed, test_domain=0)
        assert (before.step, before.validation_accuracy) == (after.step, after.validation_accuracy)
    settings = [{**each, "setting": setting} for setting, run in (("a", ALONE[:1]), ("b", ALONE[1:2])) for each in run]
    turned = [{**each, "env0_out_acc": 1 - each["env0_out_acc"]} for each in settings]
    assert (oracle(settings, test_domain=0).setting, oracle(turned, test_domain=0).setting) == ("b", "a")


def test_the_best_setting_wins_and_of_equals_the_earliest_record() -> None:
    records = [
        record(step, [0], (0.1 * step, 1, 1), (0, out, out), setting=setting)
        for setting, step, out in [("sam", 1, 0.8), ("sam", 2, 0.7), ("udim", 1, 0.6), ("udim", 2, 0.8)]
    ]
    found = training_domain_validation(records, test_domain=0)
    assert (found.setting, found.step) == ("sam", 1)
    assert "setting 'sam', step 1" in str(found)


def test_pairs_do_not_validate_another_setting_or_trial(refused: Any) -> None:
    with refused("records", got="no setting and step with all runs"):
        leave_one_domain_out_validation([*({**each, "setting": "sam"} for each in ALONE), *PAIRS], test_domain=0)
    other = [{**each, "trial_seed": 1} for each in PAIRS]  # the single run of this trial is missing
    with refused("trial_seed", got=[0, 1]):
        leave_one_domain_out_validation([*ALONE, *PAIRS, *other], test_domain=0)


def test_steps_that_lack_a_run_are_ignored() -> None:
    fewer = [each for each in PAIRS if (each["step"], each["test_envs"]) != (200, [0, 2])]
    assert leave_one_domain_out_validation([*ALONE, *fewer], test_domain=0).step == 100


def test_every_domain_can_be_the_test_domain_of_an_experiment() -> None:
    # accuracy on domain i of the run without `held`, a different number for each pair
    def accuracy(held: tuple[int, ...], domain: int) -> float:
        return (1 + domain + 4 * sum(held)) / 100

    records = [
        record(100, list(held), tuple(accuracy(held, i) for i in range(4)), (0.0,) * 4)
        for held in held_out_domains(4, cross_validation=True)
    ]
    for test in range(4):
        others = [each for each in range(4) if each != test]
        expected = sum(accuracy(tuple(sorted((test, other))), other) for other in others) / 3
        found = leave_one_domain_out_validation(records, test_domain=test)
        assert found.validation_accuracy == pytest.approx(expected)
        assert found.test_accuracy == accuracy((test,), test)


@pytest.mark.parametrize("rule", [training_domain_validation, leave_one_domain_out_validation, oracle])
def test_a_test_domain_without_records_and_several_trials_are_refused(rule: Any, refused: Any) -> None:
    with refused("records", got="no record of the test domain"):
        rule([*ALONE, *PAIRS], test_domain=2)
    other = [{**each, "trial_seed": 1} for each in [*ALONE, *PAIRS]]
    with refused("trial_seed", got=[0, 1]):
        rule([*ALONE, *PAIRS, *other], test_domain=0)


def test_too_few_domains_and_missing_accuracies_are_refused(refused: Any) -> None:
    with refused("domains", got=1):
        training_domain_validation([record(100, [0], (0.5,), (0.5,))], test_domain=0)
    two = [record(100, [0], (0.5, 0.5), (0.5, 0.5)), record(100, [0, 1], (0.5, 0.5), (0.5, 0.5))]
    with refused("domains", got=2):
        leave_one_domain_out_validation(two, test_domain=0)
    lacking = [{name: value for name, value in ALONE[0].items() if name != "env2_out_acc"}]
    with refused("records", got="no env2_out_acc"):
        training_domain_validation(lacking, test_domain=0)
    diverged = [{**each, "env1_out_acc": float("nan")} for each in ALONE]
    with refused("records", got="4 accuracies of NaN"):
        training_domain_validation(diverged, test_domain=0)


def test_an_accuracy_that_is_not_a_number_never_wins() -> None:
    nan = float("nan")
    first = record(50, [0], (0.1, 1, 1), (nan, nan, 0.9))
    assert training_domain_validation([first, *ALONE], test_domain=0).step == 300
    settings = [{**first, "setting": "diverged"}, {**ALONE[0], "setting": "sound"}]
    assert oracle(settings, test_domain=0).setting == "sound"
    pairs = [record(50, [0, 1], (0, nan, 0), (0, 0, 0)), record(50, [0, 2], (0, 0, 1), (0, 0, 0)), *PAIRS]
    assert leave_one_domain_out_validation([first, *ALONE, *pairs], test_domain=0).step == 200


def test_domains_with_two_digit_numbers_are_included() -> None:
    outs = tuple(0.1 * (i % 2) for i in range(12))
    found = training_domain_validation([record(1, [0], (0.5,) * 12, outs)], test_domain=0)
    assert found.validation_accuracy == pytest.approx(sum(outs[1:]) / 11)
