"""The data of the claims keep training, validation and test apart, and every member can take its steps there."""

from functools import partial
from itertools import islice, repeat
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.claims import digits, settings, text
from benchmarks.claims.acdc import claim_row_of, spread_over_groups
from benchmarks.claims.members import MEMBERS
from benchmarks.claims.plan import EPOCHS, METHODS, SEEDS, TIME, Plan
from benchmarks.claims.run_log import Run, RunLog
from benchmarks.claims.settings import SETTINGS, digit_batches, digits_recipe, digits_run, text_batches, text_recipe
from benchmarks.claims.sharpness import CLAIMS, COSTS, about, claim_rows, cost_rows
from benchmarks.claims.sharpness_acdc import CLAIMS as ACDC_CLAIMS
from benchmarks.claims.sharpness_acdc import VALUES
from benchmarks.claims.training import train
from benchmarks.result_file import read_result, write_result
from uumamba.data.case import Case
from uumamba.runtime.files import write_json


def test_the_test_set_is_the_same_for_every_seed_and_in_no_other_part() -> None:
    pytest.importorskip("sklearn")
    images, labels = digits.test_set()
    of_test = {image.numpy().tobytes() for image in images}
    assert len(labels) == 800
    for seed in (0, 1):
        split = digits.split_of(seed)
        assert torch.equal(split.labels.bincount(), torch.full((10,), 20))
        assert len(split.labels) + len(split.validation_labels) == 1797 - 800
        for part in (split.images, split.validation_images):
            assert not of_test & {image.numpy().tobytes() for image in part}


def test_corruptions_are_repeatable_and_grow_with_severity() -> None:
    pytest.importorskip("sklearn")
    images, _ = digits.test_set()
    first, second = list(digits.corrupted_test_sets()), list(digits.corrupted_test_sets())
    assert len(first) == 15
    moved: dict[str, list[float]] = {}
    for (name, _, corrupted), (_, _, again) in zip(first, second, strict=True):
        assert torch.equal(corrupted, again)
        moved.setdefault(name, []).append(float((corrupted - images).square().mean()))
    assert all(0 < each[0] < each[1] < each[2] for each in moved.values())


def test_a_shift_moves_an_image_by_its_pixels() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 3, 4] = 1
    corrupt, _ = digits.CORRUPTIONS["shift"]
    moved = corrupt(image, 2, torch.Generator().manual_seed(0))
    (position,) = moved[0, 0].nonzero().tolist()
    assert position in ([1, 4], [5, 4], [3, 2], [3, 6])


def test_the_domains_of_text_hold_out_parts_and_their_characters_are_known() -> None:
    for name in ("reference", "docstrings", "code"):
        training, held_out = text.domain(name)
        assert len(training) > 2 * len(held_out) > 50_000
        assert 0 <= int(training.min()) <= int(training.max()) < text.CLASSES
    assert text.encode("a\té").tolist() == [text.CHARACTERS.index(each) for each in "a??"]


def test_the_language_model_sees_no_later_character() -> None:
    torch.manual_seed(0)
    net = text.CharacterNet().eval()
    characters = torch.randint(text.CLASSES, (2, 10))
    changed = characters.clone()
    changed[:, 6] = (changed[:, 6] + 1) % text.CLASSES
    before, after = net(characters), net(changed)
    assert before.shape == (2, text.CLASSES, 10)
    assert torch.allclose(before[..., :6], after[..., :6], atol=1e-6)
    assert not torch.allclose(before[..., 6:], after[..., 6:], atol=1e-3)


def test_a_batch_of_text_has_each_character_s_successor() -> None:
    _, batch = next(text_batches(0))
    assert torch.equal(batch["image"][:, 1:], batch["label"][:, :-1])


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_trains_the_digit_classifier(name: str) -> None:
    pytest.importorskip("sklearn")
    run = Run("digits", name, MEMBERS[name].published, 0.05, 12, 0, "test")
    split = digits.split_of(0)
    recipe = digits_recipe(run)
    batches = list(islice(digit_batches(split, 0), 12))
    with torch.no_grad():
        before = nn.functional.cross_entropy(recipe.net(split.images), split.labels)
    train(recipe, batches, steps=12)
    with torch.no_grad():
        assert nn.functional.cross_entropy(recipe.net(split.images), split.labels) < before
    assert not recipe.net.training
    assert all(param.grad is None or param.grad.isfinite().all() for param in recipe.net.parameters())


def test_a_run_measures_the_same_whenever_it_is_made() -> None:
    pytest.importorskip("sklearn")
    run = Run("digits", "SAM", 0.05, 0.05, 3, 0, "test")
    assert digits_run(run) == digits_run(run)


def test_a_member_s_own_number_reaches_its_optimizer_or_its_objective() -> None:
    base = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    make = {name: partial(MEMBERS[name].recipe, nn.Linear(2, 3), nn.CrossEntropyLoss(), base) for name in MEMBERS}
    assert make["SAM"](0.2).optimizer.param_groups[0]["rho"] == 0.2
    assert make["SAM"](engine={"max_grad_norm": 1.5}).optimizer.max_grad_norm == 1.5
    assert make["SAF"](0.7, samples=4, classes=3).objective.weight == 0.7
    assert make["OBF"]().ascent is not None


def test_every_method_claims_something_that_is_measured_in_its_setting() -> None:
    assert {claim.method for claim in CLAIMS} == set(MEMBERS) - {"base"}
    assert all({claim.method, claim.control} <= set(METHODS[claim.setting]) for claim in CLAIMS)
    assert SEEDS["digits"] >= 10
    assert {EPOCHS, TIME} == {"equal epochs", "equal time"}
    assert {claim.method for claim in ACDC_CLAIMS} == set(VALUES) - {"base"}
    assert set(VALUES) <= set(MEMBERS)


def test_a_cost_is_judged_by_its_rounds() -> None:
    cost = {name: [1.3, 1.31, 1.32] for name in COSTS} | {"base": [1.0, 1.0, 1.0]}
    verdicts = {row["method"]: row["verdict"] for row in cost_rows(cost)}
    assert verdicts["MESA"] == "holds"
    assert verdicts["LookSAM(5)"] == "does not hold here"


def case(patient: str, group: str) -> Case:
    return Case(f"{patient}_frame01", patient, "a", Path("absent.nii.gz"), group=group)


def test_patients_are_taken_in_turn_from_each_diagnosis() -> None:
    cases = [case("p3", "NOR"), case("p1", "DCM"), case("p2", "DCM"), case("p4", "NOR"), case("p5", "DCM")]
    assert spread_over_groups([*cases, *cases], 3) == ["p1", "p3", "p2"]
    assert sorted(spread_over_groups(cases, None)) == ["p1", "p2", "p3", "p4", "p5"]


def test_patients_are_paired_after_the_mean_over_seeds() -> None:
    runs = {name: [Run("acdc", name, None, 0.001, 10, seed, "test") for seed in (0, 1)] for name in ("SAM", "base")}
    measured = {
        runs["SAM"][0]: {"p1": 0.9, "p2": 0.7},
        runs["SAM"][1]: {"p1": 0.7, "p2": 0.7},
        runs["base"][0]: {"p1": 0.6, "p2": 0.6},
        runs["base"][1]: {"p1": 0.6, "p2": 0.6},
    }
    row = claim_row_of(ACDC_CLAIMS[0], runs, measured)
    # differences 0.2 and 0.1: mean 0.15, half width 12.7062 * 0.05
    assert (row["difference"], row["seeds"]) == (0.15, 2)
    assert row["interval"] == [pytest.approx(0.15 - 0.63531, abs=1e-4), pytest.approx(0.15 + 0.63531, abs=1e-4)]
    with pytest.raises(ValueError, match="SAM and base were scored on different patients"):
        claim_row_of(ACDC_CLAIMS[0], runs, measured | {run: {"p1": 0.6} for run in runs["base"]})


@pytest.mark.parametrize("name", METHODS["text"])
def test_every_method_of_text_fine_tunes_the_language_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(settings, "pretrained", text.CharacterNet().state_dict)
    run = Run("text", name, MEMBERS[name].published, 0.003, 3, 0, "validation")
    recipe = text_recipe(run)
    _, batch = next(text_batches(0))
    before = float(recipe.optimizer.step(partial(recipe.objective, recipe.net, batch)))
    train(recipe, repeat((0, batch)), steps=3)
    with torch.no_grad():
        after = nn.functional.cross_entropy(recipe.net(batch["image"]), batch["label"])
    assert float(after) < before


def test_every_claim_has_a_row_for_each_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {claim.metric for claim in CLAIMS}

    def complete(self: RunLog, runs: list[Run], work: object, *, workers: int) -> None:
        self.measured |= {run: dict.fromkeys(metrics, float(run.steps + run.seed)) for run in runs}

    monkeypatch.setattr(RunLog, "complete", complete)
    seconds = {name: [1.0, 1.0] if name == "base" else [2.0, 2.0] for name in MEMBERS}
    for setting in SETTINGS:
        write_json(tmp_path / f"step_time_{setting}.json", seconds)
    plan = Plan(tmp_path, quick=True, workers=1)
    rows = [row for setting in SETTINGS for row in claim_rows(plan, setting)]
    assert len(rows) == 2 * len(CLAIMS) + len(COSTS)
    # with equal time a method that costs 2 makes half of the base's 30 steps
    ends = {(row["budget"], row["method"]): row["value"] for row in rows if row["metric"] == "digits: test accuracy"}
    assert (ends[EPOCHS, "SAM"], ends[TIME, "SAM"]) == (30.5, 15.5)
    write_result(tmp_path / "a.json", rows, title="A", about=about(plan), measured_at="abc")
    assert read_result(tmp_path / "a.json")["rows"] == rows
