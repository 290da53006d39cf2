"""The claim about other vendors' scanners pairs patients, tests what it names, and has a place for each method."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.claims.acdc import FOLD, prepare_patients, read_acdc_config
from benchmarks.claims.acdc_vendor_shift import (
    MEAN,
    list_claims,
    list_equal_step_claims,
    make_shift_row,
    make_training,
    match_sam_steps,
    plan_runs,
    train_and_score,
)
from benchmarks.claims.run_log import Run
from benchmarks.claims.shift_methods import METHODS, PLAIN, STRONG, ShiftMethod, make_member_recipe
from benchmarks.claims.shifted_patients import ORIGINAL, prepare_styles
from benchmarks.result_file import find_changed_configs, read_result, write_result
from uumamba.data.prepared import PreparedFolder
from uumamba.data.vendor_styles import STYLES
from uumamba.domain_generalization import UDIM
from uumamba.runtime.seeds import key_to_seed


def write_patient(folder: Path) -> None:
    """Blood in a ring of muscle beside blood, in noise."""
    folder.mkdir(parents=True)
    (folder / "Info.cfg").write_text("ED: 1\nES: 2\nGroup: NOR\n")
    y, x = np.mgrid[-1:1:80j, -1:1:72j]
    for frame, radius in (("frame01", 0.5), ("frame02", 0.35)):
        distance = np.hypot(y, x)
        label = np.select([distance < radius, distance < 0.65, np.hypot(y, x - 0.8) < 0.3], [3, 2, 1], default=0)
        generator = np.random.default_rng(key_to_seed(folder.name, frame))
        image = np.array([20, 180, 60, 200])[label] + generator.integers(0, 20, label.shape)
        for name, plane in ((frame, image.astype(np.int16)), (f"{frame}_gt", label.astype(np.uint8))):
            volume = nib.Nifti1Image(np.stack([plane] * 2, axis=2), np.diag([-2.0, -2.0, 10.0, 1.0]))
            nib.save(volume, folder / f"{folder.name}_{name}.nii.gz")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny patients in ACDC's layout to train on and one to score, coarser than the benchmark's."""
    folder = tmp_path_factory.mktemp("shift")
    raw = folder / "raw"
    for number in range(1, 6):
        write_patient(raw / "training" / f"patient00{number}")
    config = read_acdc_config(["preprocess.spacing_mm=[null, 4.0, 4.0]"])
    return prepare_patients(raw, folder / "prepared", config, training=2, validation=1, workers=0)


@pytest.fixture(scope="module")
def styles(prepared: Path) -> dict[str, Path]:
    return prepare_styles(
        prepared, prepared.parent / "styles", read_acdc_config(["preprocess.spacing_mm=[null, 4.0, 4.0]"])
    )


def run(method: str, seed: int = 0, steps: int = 2) -> Run:
    return Run("acdc, shifted", method, None, 0.001, steps, seed, "test")


def test_the_styles_show_the_validation_patients_alone_with_their_own_labels(
    prepared: Path, styles: dict[str, Path]
) -> None:
    own = PreparedFolder(prepared)
    assert styles.keys() == {ORIGINAL, *STYLES}
    for name in STYLES:
        folder = PreparedFolder(styles[name])
        assert folder.manifest.cases
        for listed in folder.manifest.cases:
            assert listed.fold == int(FOLD)
            assert listed.label == own.manifest.by_id(listed.case_id).label
            shown, original = folder.case(listed.case_id), own.case(listed.case_id)
            count = [
                np.bincount(np.asarray(case.label).ravel(), minlength=4)[1:].tolist() for case in (shown, original)
            ]
            assert count[0] == count[1]
            assert shown.image.shape != original.image.shape or not np.array_equal(shown.image, original.image)


def test_a_style_that_stands_is_not_made_again_until_it_changes(
    prepared: Path, styles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = next((styles["dark_blood"] / "scans").iterdir())
    scan.write_bytes(b"stands")
    again = partial(prepare_styles, prepared, prepared.parent / "styles", read_acdc_config())
    again()
    assert scan.read_bytes() == b"stands"
    (styles["dark_blood"] / "style.json").write_text("{}")
    again()
    assert scan.read_bytes() != b"stands"


@pytest.mark.slow
def test_a_run_scores_every_patient_in_every_style_and_is_the_same_whenever_made(
    prepared: Path, styles: dict[str, Path]
) -> None:
    few = {name: styles[name] for name in (ORIGINAL, "dark_blood")}
    first = train_and_score(run(PLAIN), prepared=prepared, styles=few)
    patients = {case.patient_id for case in PreparedFolder(prepared).manifest.select(fold=int(FOLD))}
    assert first.keys() == few.keys()
    assert all(scores.keys() == patients for scores in first.values())
    assert train_and_score(run(PLAIN), prepared=prepared, styles=few) == first


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_its_steps(prepared: Path, name: str) -> None:
    recipe, feed = make_training(run(name), prepared)
    before = [param.detach().clone() for param in recipe.net.parameters()]
    _, batch = next(feed)
    assert recipe.step(batch).isfinite()
    assert any(not torch.equal(old, new) for old, new in zip(before, recipe.net.parameters(), strict=True))


def test_strong_augmentation_changes_the_patches_and_nothing_else_of_the_configuration(prepared: Path) -> None:
    plain, strong = (next(make_training(run(name), prepared)[1])[1] for name in (PLAIN, "strong augmentation"))
    assert torch.equal(plain["label"], strong["label"])
    assert not torch.equal(plain["image"], strong["image"])
    configs = [read_acdc_config(settings).as_json() for settings in ((), STRONG)]
    assert {key for key in configs[0] if configs[0][key] != configs[1][key]} == {"augment"}


def test_a_method_may_feed_a_case_twice_and_spend_its_time_before(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_alone(cases: list[str], folder: Path, run: Run) -> list[str]:
        return [cases[run.seed]] * 2

    method = ShiftMethod(partial(make_member_recipe, "base"), cases=one_alone, share=0.75)
    monkeypatch.setitem(METHODS, "one alone", method)  # type: ignore[misc] # a dict behind the Mapping
    cases = [case.case_id for case in PreparedFolder(prepared).manifest.select(without_fold=int(FOLD))]

    _, feed = make_training(run("one alone", seed=1), prepared)

    assert {case_id for _, batch in (next(feed), next(feed)) for case_id in batch["case_id"]} == {cases[1]}
    cost = {name: [1.0, 1.0] for name in METHODS} | {"SAM": [2.0, 2.0]}
    steps = {name: each[0].steps for name, each in plan_runs(200, cost, seeds=3).items()}
    assert (steps[PLAIN], steps["SAM"], steps["one alone"]) == (200, 100, 150)


@pytest.mark.parametrize("name", ["UDIM", "UDIM, random direction"])
def test_udim_is_timed_with_its_warm_up_over_and_runs_for_what_both_parts_cost(prepared: Path, name: str) -> None:
    timed, long = (
        make_training(replace(run(name, steps=steps), measures=measures), prepared)[0].method
        for steps, measures in ((0, "time"), (100, "test"))
    )
    assert isinstance(timed, UDIM)
    assert isinstance(long, UDIM)
    assert (timed.warmup_steps, long.warmup_steps) == (0, 20)
    cost = {each: [1.0, 1.0] for each in METHODS} | {"SAM": [2.0, 2.0], name: [7.0, 7.0]}
    assert plan_runs(600, cost, seeds=1)[name][0].steps == 100  # 0.2 x 2 + 0.8 x 7 = 6


@pytest.mark.slow
def test_slow_cases_are_among_those_of_the_training_and_stand_there_twice_by_the_seed_alone(prepared: Path) -> None:
    cases = [case.case_id for case in PreparedFolder(prepared).manifest.select(without_fold=int(FOLD))]
    method = METHODS["USEFUL"]
    assert method.cases is not None

    fed = method.cases(cases, prepared, run("USEFUL", steps=60))

    assert list(fed[: len(cases)]) == cases
    assert fed[len(cases) :]
    assert len({*fed[len(cases) :]}) == len(fed) - len(cases) < len(cases)
    assert method.cases(cases, prepared, run("USEFUL", steps=60)) == fed


def test_every_method_claims_every_style_against_the_plain_one() -> None:
    listed = [(each.claim.method, each.claim.control, each.style) for each in list_claims()]
    for name in set(METHODS) - {PLAIN}:
        assert [style for method, control, style in listed if (method, control) == (name, PLAIN)] == [
            MEAN,
            *STYLES,
            ORIGINAL,
        ]
    assert {each.claim.margin for each in list_claims() if each.style == ORIGINAL} == {0.01}


def test_rows_are_paired_by_patient_after_the_mean_over_seeds_and_styles(tmp_path: Path) -> None:
    runs = {name: [run(name, seed) for seed in (0, 1)] for name in (PLAIN, "SAM")}

    def scores(p1: float, p2: float) -> dict[str, dict[str, float]]:
        # In the mean of the five styles each patient has what is given; the original counts apart.
        shifted = {name: {"p1": p1 + 0.01 * at, "p2": p2 - 0.01 * at} for at, name in enumerate(STYLES, start=-2)}
        return {ORIGINAL: {"p1": 0.9, "p2": 0.9}, **shifted}

    measured = {
        runs["SAM"][0]: scores(0.9, 0.7),
        runs["SAM"][1]: scores(0.7, 0.7),
        runs[PLAIN][0]: scores(0.6, 0.6),
        runs[PLAIN][1]: scores(0.6, 0.6),
    }
    chosen = {each.style: each for each in list_claims() if each.claim.method == "SAM"}
    row = make_shift_row(chosen[MEAN], runs, measured)
    # differences 0.2 and 0.1: mean 0.15, half width 12.7062 * 0.05
    assert (row["difference"], row["seeds"], row["value"]) == (0.15, 2, 0.75)
    assert row["interval"] == [pytest.approx(0.15 - 0.63531, abs=1e-4), pytest.approx(0.15 + 0.63531, abs=1e-4)]
    assert row["metric"] == f"ACDC: Dice, {MEAN}"
    original = make_shift_row(chosen[ORIGINAL], runs, measured)
    assert (original["difference"], original["verdict"]) == (0.0, "holds")  # no worse by 0.01

    path = tmp_path / "a.json"
    write_result(path, [row, original], title="A", configs=[("acdc_cpu", STRONG)], measured_at="abc")
    assert find_changed_configs(read_result(path)) == []


def test_a_network_that_guesses_scores_low_in_every_style(prepared: Path, styles: dict[str, Path]) -> None:
    from benchmarks.claims.acdc import score_patients

    class Background(nn.Module):
        spatial_dims, required_divisor, minimum_patch = 2, (1, 1), 1

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return (
                torch.nn.functional.one_hot(torch.zeros_like(image[:, 0], dtype=torch.long), 4).movedim(-1, 1).float()
            )

    assert set(score_patients(Background(), styles["fast_scan"]).values()) == {0.0}


def test_at_equal_steps_sam_s_runs_are_read_again_and_rows_say_which_budget_they_are_of() -> None:
    runs = plan_runs(600, {name: [1.0] for name in METHODS} | {"SAM": [2.0], "UDIM": [7.0]}, seeds=2)
    longer = match_sam_steps(runs)
    assert longer["SAM"] == runs["SAM"]
    assert {(each.method, each.steps, each.seed) for each in longer["UDIM"]} == {("UDIM", 300, 0), ("UDIM", 300, 1)}
    claimed = list(list_equal_step_claims())
    assert {name for each in claimed for name in (each.claim.method, each.claim.control)} == longer.keys()
    scores = {style: {"p1": 0.5, "p2": 0.7} for style in (ORIGINAL, *STYLES)}
    row = make_shift_row(claimed[0], longer, {each: scores for of_name in longer.values() for each in of_name})
    assert (row["budget"], row["difference"]) == ("equal steps", 0.0)
    assert {each.budget for each in list_claims()} == {"equal time"}
