"""Parts have the names and defaults of their class's options."""

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from benchmarks.claims.shift_methods import STRONG
from tests.optim_members import OPTIMIZERS
from uumamba.config import read_config
from uumamba.config.learning_rate import build_budget, build_schedule
from uumamba.config.loss import TermName
from uumamba.config.objectives import build_objective
from uumamba.config.registry import KINDS
from uumamba.config.track import build_trackers, check_trackers
from uumamba.config.training import resolve_channels_last
from uumamba.data.label_scheme import LabelScheme
from uumamba.data.preprocess import CtStatistics, PreprocessRecipe
from uumamba.losses import CrossEntropyLoss, FocalLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.losses.region_masks import RegionTerm
from uumamba.optim import MESA
from uumamba.pipelines.build import build_loss
from uumamba.training import SupervisedObjective
from uumamba.training.track_mlflow import MLflowTracker


def test_every_optimizer_has_a_name_in_a_config() -> None:
    assert {getattr(make, "func", make).__name__ for make in OPTIMIZERS.values()} == KINDS["optim"].parts.keys()


def test_the_options_of_preprocessing_are_those_of_the_recipe() -> None:
    assert read_config("acdc_cpu").preprocess.build() == PreprocessRecipe((None, 1.5, 1.5))


def test_objectives_get_their_options_and_mesa_a_copy_of_the_network() -> None:
    net = nn.Conv2d(1, 4, 1)
    assert type(build_objective(read_config("demo").objective, nn.MSELoss(), net)) is SupervisedObjective
    config = read_config("demo", ["objective={name: MESA, weight: 0.5, decay: 0.99, start_step: 7}"])
    objective = build_objective(config.objective, build_loss(config), net)
    assert isinstance(objective, MESA)
    assert (objective.weight, objective.temperature, objective.start_step) == (0.5, 5.0, 7)
    assert torch.equal(objective.teacher.module.weight, net.weight)


def test_the_default_loss_has_three_terms_with_learned_weights() -> None:
    logits, label = torch.randn(2, 4, 8, 8), torch.randint(0, 4, (2, 1, 8, 8))
    terms = {"region": SoftDiceLoss(batch_dice=True), "distribution": CrossEntropyLoss(), "pixel": FocalLoss(gamma=2.0)}
    expected, loss = UncertaintyWeightedLoss(terms), read_config("demo").loss.bind()()
    assert loss(logits, label) == expected(logits, label)
    assert loss.state_dict().keys() == expected.state_dict().keys()


def test_terms_are_chosen_and_logged_by_name() -> None:
    terms = ["region", "pixel_by_class", "centreline"]
    loss = read_config("demo", [f"loss.terms={terms}", "loss.centreline_iterations=3"]).loss.bind()()
    loss(torch.randn(1, 3, 8, 8), torch.randint(0, 3, (1, 1, 8, 8)))
    assert list(loss.weights()) == list(loss.last_terms) == terms
    assert loss.losses["centreline"].iterations == 3
    assert loss.losses["pixel_by_class"].class_mean


@pytest.mark.parametrize("name", KINDS["loss"].parts)
@pytest.mark.parametrize("regions", [{}, {"whole": (1, 2), "core": (2,)}])
def test_every_loss_gets_regions_and_ignored_voxels_from_the_data_set(
    name: str, regions: dict[str, tuple[int, ...]], refused: Any
) -> None:
    labels = LabelScheme({"a": 1, "b": 2}, regions=regions, regions_class_order=tuple(range(1, 1 + len(regions))))
    terms = [f"loss.terms={[*get_args(TermName)]}"] if name == "uncertainty_weighted" else []
    config = read_config("demo", [f"loss={{name: {name}}}", *terms])
    ignoring = build_loss(config, replace(labels, ignore_value=9))
    ends = [each for each in ignoring.modules() if hasattr(each, "ignore_label")]
    assert len(ends) == (5 if terms else 2)
    assert {each.ignore_label for each in ends} == {255}
    assert {isinstance(each, RegionTerm) for each in ends} == {bool(regions)}
    logits, label = torch.randn(2, labels.outputs, 8, 8), torch.randint(0, 3, (2, 1, 8, 8))
    assert ignoring(logits, label) == build_loss(config, labels)(logits, label)
    for key in ("membership", "ignore_label"):
        with refused(f"loss.{key}"):
            read_config("demo", [f"loss={{name: {name}, {key}: null}}"])


def test_ct_statistics_are_given_or_left_to_be_found() -> None:
    given = "preprocess.ct_statistics={low_hu: -50, high_hu: 500, mean_hu: 250, std_hu: 100}"
    recipe = read_config("demo", ["preprocess.normalisation=ct", given]).preprocess.build()
    assert recipe.ct_statistics == CtStatistics(-50, 500, 250, 100)
    assert not read_config("demo", ["preprocess.normalisation=ct"]).preprocess.build().is_complete


def test_a_budget_gets_its_minutes_and_a_warm_up_in_steps() -> None:
    config = read_config("demo", ("schedule={name: budget, minutes: 25, warmup_epochs: 1}",))
    budget = build_budget(config.schedule)
    assert budget is not None
    assert budget.total_s == 1500.0
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(config.schedule, optimizer, epochs=15, batches_per_epoch=40, budget=budget)
    assert schedule.get_last_lr() == [1 / 40], "the first of 40 warm-up steps"
    assert build_budget(read_config("demo").schedule) is None


@pytest.mark.parametrize(("epochs", "risen"), [(9, 40), (5, 40), (1, 20)])
def test_a_warm_up_takes_at_most_half_of_the_steps(epochs: int, risen: int) -> None:
    part = read_config("demo", ["schedule={name: constant, warmup_epochs: 1}"]).schedule
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(part, optimizer, epochs=epochs, batches_per_epoch=40)
    rates = []
    for _ in range(epochs * 40):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([min(1.0, (step + 1) / risen) for step in range(epochs * 40)])


def test_channels_last_is_refused_where_torch_may_crash(refused) -> None:
    with refused("training.channels_last", got=True):
        resolve_channels_last(True, "cpu")
    assert not resolve_channels_last("auto", "cuda")
    assert not resolve_channels_last(False, "cuda:1")


def test_a_tracker_is_built_once_and_writes_nothing_before_training(tmp_path: Path) -> None:
    made = build_trackers(("tensorboard", "tensorboard"), run=tmp_path, fold="fold_0", experiment="e", parameters={})
    assert [type(each).__name__ for each in made] == ["TensorBoardTracker"]
    assert not list(tmp_path.iterdir())


def test_a_tracker_without_its_packages_is_refused_with_the_installation(refused, monkeypatch) -> None:
    check_trackers(("tensorboard",))
    monkeypatch.setattr(MLflowTracker, "packages", ("mlflow_that_nobody_has",))
    with refused("track", got="mlflow") as error:
        check_trackers(("mlflow",))
    assert "pip install 'uumamba[track]'" in error.value.fix


def test_the_strong_augmentation_is_that_of_the_benchmark() -> None:
    assert read_config("acdc_dg_strong").augment == read_config("acdc_cpu", STRONG).augment
