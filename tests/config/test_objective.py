"""What a run minimises, by name, and what is refused when the configuration is read."""

import pytest
import torch

from uumamba.config import read_config
from uumamba.optim import MESA
from uumamba.pipelines.build import build_loss
from uumamba.runtime.errors import UsageError
from uumamba.training import SupervisedObjective


def test_a_run_that_names_no_objective_minimises_the_loss_alone() -> None:
    config = read_config("demo")
    assert type(config.objective.build(torch.nn.MSELoss(), torch.nn.Identity())) is SupervisedObjective


def test_mesa_gets_its_options_and_a_copy_of_the_network() -> None:
    config = read_config("demo", ["objective={name: MESA, weight: 0.5, decay: 0.99, start_step: 7}"])
    net = torch.nn.Conv2d(1, 4, 1)
    objective = config.objective.build(build_loss(config), net)
    assert isinstance(objective, MESA)
    assert (objective.weight, objective.temperature, objective.start_step) == (0.5, 5.0, 7)
    assert torch.equal(objective.teacher.module.weight, net.weight)


def test_saf_is_refused_for_patches_with_the_reason_and_the_alternative() -> None:
    with pytest.raises(UsageError, match=r"(?s)objective.*SAF keeps.*patches cut at random.*name MESA"):
        read_config("demo", ["objective={name: SAF}"])


@pytest.mark.parametrize(
    "optim",
    [
        "optim={name: TRAM, base: {name: AdamW}}",
        "optim={name: SAM, base: {name: AdamW}, ascent: {name: output_bias_forgetting}}",
    ],
)
def test_mesa_is_refused_beside_an_optimizer_that_needs_logits(optim: str) -> None:
    with pytest.raises(UsageError, match=r"(?s)objective.*MESA gives no logits.*supervised"):
        read_config("demo", [optim, "objective={name: MESA}"])
