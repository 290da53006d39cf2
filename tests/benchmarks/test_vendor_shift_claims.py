"""Tests of the claims about other vendors' scanners."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.claims import acdc_vendor_shift as shift
from benchmarks.claims import sharpness_acdc
from benchmarks.claims.acdc import FOLD, make_patient_row, prepare_patients, read_acdc_config, score_patients
from benchmarks.claims.run_log import Run
from benchmarks.claims.shift_methods import METHODS, PLAIN, STRONG, ShiftMethod, make_member_recipe
from benchmarks.claims.shifted_patients import ORIGINAL, prepare_styles
from uumamba.data.prepared import PreparedFolder
from uumamba.data.vendor_styles import STYLES
from uumamba.domain_generalization import UDIM

CONFIG = read_acdc_config(["preprocess.spacing_mm=[null, 4.0, 4.0]"])
HALF_WIDTH = 0.63531  # 12.7062 * 0.05 for differences of 0.2 and 0.1


@pytest.fixture(scope="module")
def prepared(phantom: PreparedFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepare two phantom patients for training and one for scoring."""
    raw, out = phantom.path.parent / "raw", tmp_path_factory.mktemp("shift") / "prepared"
    return prepare_patients(raw, out, CONFIG, training=2, validation=1, workers=0)


@pytest.fixture(scope="module")
def styles(prepared: Path) -> dict[str, Path]:
    return prepare_styles(prepared, prepared.parent / "styles", CONFIG)


@pytest.fixture(scope="module")
def training_cases(prepared: Path) -> list[str]:
    return [case.case_id for case in PreparedFolder(prepared).manifest.select(without_fold=int(FOLD))]


def make_run(method: str, seed: int = 0, steps: int = 2, measures: str = "test") -> Run:
    return Run("acdc, shifted", method, None, 0.001, steps, seed, measures)


def plan_steps(steps: int, **costs: float) -> dict[str, int]:
    cost = {name: [costs.get(name, 1.0)] * 2 for name in METHODS}
    return {name: runs[0].steps for name, runs in shift.plan_runs(steps, cost, seeds=1).items()}


def test_styles_hold_the_validation_patients_with_unchanged_labels(prepared: Path, styles: dict[str, Path]) -> None:
    own = PreparedFolder(prepared)
    assert styles.keys() == {ORIGINAL, *STYLES}
    for folder in (PreparedFolder(styles[name]) for name in STYLES):
        assert [case.case_id for case in folder.manifest.cases] == [
            case.case_id for case in own.manifest.select(fold=int(FOLD))
        ]
        for listed in folder.manifest.cases:
            shifted, original = folder.case(listed.case_id), own.case(listed.case_id)
            assert listed.label == own.manifest.by_id(listed.case_id).label
            assert not (np.bincount(shifted.label.ravel())[1:] - np.bincount(original.label.ravel())[1:]).any()
            assert shifted.image.shape != original.image.shape or not np.array_equal(shifted.image, original.image)


def test_an_up_to_date_style_is_not_made_again(prepared: Path, styles: dict[str, Path]) -> None:
    scan = next((styles["dark_blood"] / "scans").iterdir())
    scan.write_bytes(b"kept")
    prepare_styles(prepared, prepared.parent / "styles", CONFIG)
    assert scan.read_bytes() == b"kept"
    (styles["dark_blood"] / "style.json").write_text("{}")
    prepare_styles(prepared, prepared.parent / "styles", CONFIG)
    assert scan.read_bytes() != b"kept"


@pytest.mark.slow
def test_a_run_scores_every_patient_in_every_style_and_is_repeatable(prepared: Path, styles: dict[str, Path]) -> None:
    few = {name: styles[name] for name in (ORIGINAL, "dark_blood")}
    first = shift.train_and_score(make_run(PLAIN), prepared=prepared, styles=few)
    patients = {case.patient_id for case in PreparedFolder(prepared).manifest.select(fold=int(FOLD))}
    assert {name: scores.keys() for name, scores in first.items()} == dict.fromkeys(few, patients)
    assert shift.train_and_score(make_run(PLAIN), prepared=prepared, styles=few) == first


@pytest.mark.parametrize("name", METHODS)
def test_every_method_changes_the_weights(prepared: Path, name: str) -> None:
    recipe, feed = shift.make_training(make_run(name), prepared)
    before = [param.detach().clone() for param in recipe.net.parameters()]
    assert recipe.step(next(feed)[1]).isfinite()
    assert any(not torch.equal(old, new) for old, new in zip(before, recipe.net.parameters(), strict=True))


def test_strong_augmentation_changes_images_only(prepared: Path) -> None:
    names = (PLAIN, "strong augmentation")
    plain, strong = (next(shift.make_training(make_run(name), prepared)[1])[1] for name in names)
    assert torch.equal(plain["label"], strong["label"])
    assert not torch.equal(plain["image"], strong["image"])
    configs = [read_acdc_config(settings).as_json() for settings in ((), STRONG)]
    assert {key for key in configs[0] if configs[0][key] != configs[1][key]} == {"augment"}


def test_a_method_may_repeat_a_case_and_spend_a_share_of_its_time(
    prepared: Path, training_cases: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = ShiftMethod(
        partial(make_member_recipe, "base"), cases=lambda cases, folder, run: [cases[run.seed]] * 2, share=0.75
    )
    monkeypatch.setitem(METHODS, "repeated", method)  # type: ignore[misc] # a dict typed as Mapping
    _, feed = shift.make_training(make_run("repeated", seed=1), prepared)
    assert {case_id for _, batch in (next(feed), next(feed)) for case_id in batch["case_id"]} == {training_cases[1]}
    steps = plan_steps(200, SAM=2.0)
    assert (steps[PLAIN], steps["SAM"], steps["repeated"]) == (200, 100, 150)


@pytest.mark.parametrize("name", ["UDIM", "UDIM, random direction"])
def test_udim_is_timed_after_its_warm_up_and_planned_with_both_costs(prepared: Path, name: str) -> None:
    runs = (make_run(name, steps=0, measures="time"), make_run(name, steps=100))
    timed, trained = (shift.make_training(run, prepared)[0].method for run in runs)
    assert isinstance(timed, UDIM)
    assert isinstance(trained, UDIM)
    assert (timed.warmup_steps, trained.warmup_steps) == (0, 20)
    assert plan_steps(600, **{"SAM": 2.0, name: 7.0})[name] == 100  # 0.2 x 2 + 0.8 x 7 = 6


@pytest.mark.slow
def test_slow_cases_are_some_training_cases_repeated_once(prepared: Path, training_cases: list[str]) -> None:
    select, run = METHODS["USEFUL"].cases, make_run("USEFUL", steps=60)
    assert select is not None
    selected = list(select(training_cases, prepared, run))
    repeated = selected[len(training_cases) :]
    assert selected[: len(training_cases)] == training_cases
    assert 0 < len(repeated) == len({*repeated}) < len(training_cases)
    assert list(select(training_cases, prepared, run)) == selected


def test_every_method_has_a_claim_per_style_against_the_plain_optimizer() -> None:
    listed = [(each.claim.method, each.claim.control, each.style) for each in shift.list_claims()]
    for name in set(METHODS) - {PLAIN}:
        found = [style for method, control, style in listed if (method, control) == (name, PLAIN)]
        assert found == [shift.MEAN, *STYLES, ORIGINAL]
    assert {each.claim.margin for each in shift.list_claims() if each.style == ORIGINAL} == {0.01}


def test_rows_are_paired_by_patient_after_the_mean_over_seeds_and_styles(refused: Any) -> None:
    runs = {name: [make_run(name, seed) for seed in (0, 1)] for name in (PLAIN, "SAM")}

    def make_scores(p1: float, p2: float) -> dict[str, dict[str, float]]:
        # the mean over the five styles is p1 and p2; the original style is separate
        shifted = {name: {"p1": p1 + 0.01 * at, "p2": p2 - 0.01 * at} for at, name in enumerate(STYLES, start=-2)}
        return {ORIGINAL: {"p1": 0.9, "p2": 0.9}, **shifted}

    values = ((0.6, 0.6), (0.6, 0.6), (0.9, 0.7), (0.7, 0.7))
    measured = {run: make_scores(*each) for run, each in zip((*runs[PLAIN], *runs["SAM"]), values, strict=True)}
    chosen = {each.style: each for each in shift.list_claims() if each.claim.method == "SAM"}
    row = shift.make_shift_row(chosen[shift.MEAN], runs, measured)
    assert (row["difference"], row["seeds"], row["value"]) == (0.15, 2, 0.75)
    assert row["interval"] == pytest.approx([0.15 - HALF_WIDTH, 0.15 + HALF_WIDTH], abs=1e-4)
    assert row["metric"] == f"ACDC: Dice, {shift.MEAN}"
    original = shift.make_shift_row(chosen[ORIGINAL], runs, measured)
    assert (original["difference"], original["verdict"]) == (0.0, "holds")  # a loss of 0.01 is allowed
    claim = replace(sharpness_acdc.CLAIMS[0], control=PLAIN)
    with refused("--out"):
        make_patient_row(claim, runs, {run: {f"p{run.method}": 0.6} for run in measured})


def test_a_constant_network_scores_zero(styles: dict[str, Path]) -> None:
    class Background(nn.Module):
        spatial_dims, required_divisor, minimum_patch = 2, (1, 1), 1

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.cat([image * 0 + 1, *[image * 0] * 3], dim=1)

    assert set(score_patients(Background(), styles["fast_scan"]).values()) == {0.0}


def test_equal_steps_use_sam_s_runs_and_name_their_budget() -> None:
    runs = shift.plan_runs(600, {name: [1.0] for name in METHODS} | {"SAM": [2.0], "UDIM": [7.0]}, seeds=2)
    longer = shift.match_sam_steps(runs)
    assert longer["SAM"] == runs["SAM"]
    assert longer["UDIM"] == [replace(run, method="UDIM") for run in runs["SAM"]]
    assert {run.steps for run in runs["SAM"]} == {300}
    claimed = list(shift.list_equal_step_claims())
    assert {name for each in claimed for name in (each.claim.method, each.claim.control)} == longer.keys()
    scores = {style: {"p1": 0.5, "p2": 0.7} for style in (ORIGINAL, *STYLES)}
    row = shift.make_shift_row(claimed[0], longer, {each: scores for runs in longer.values() for each in runs})
    assert (row["budget"], row["difference"]) == ("equal steps", 0.0)
    assert {each.budget for each in shift.list_claims()} == {"equal time"}
