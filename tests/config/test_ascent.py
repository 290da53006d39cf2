"""Optimizers whose closures must return logits, and the loss to climb, by name."""

import inspect
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from uumamba.config import RunConfig, read_config
from uumamba.config.ascent import CANNOT_CLIMB, OutputBiasForgettingConfig, check_ascent
from uumamba.config.optim import OptimConfig, TRAMConfig
from uumamba.optim import TRAM, OutputBiasForgetting
from uumamba.pipelines.build import build_loss, build_net
from uumamba.runtime.errors import UsageError
from uumamba.training import SupervisedObjective

OBF = "ascent: {name: output_bias_forgetting}"
SGD = "base: {name: SGD}"


def demo(optim: str) -> RunConfig:
    """The demo's run with the smallest patch that leaves two bottleneck voxels."""
    divisor = read_config("demo").net.divisor()
    patch = [*divisor[:-1], 2 * divisor[-1]]
    return read_config("demo", [f"optim={{{optim}}}", f"training.patch_size={patch}", "training.batch_size=1"])


def defaults_of(thing: type) -> dict[str, Any]:
    return {name: parameter.default for name, parameter in inspect.signature(thing).parameters.items()}


@pytest.mark.parametrize(
    ("config", "made"),
    [
        (TRAMConfig(name="TRAM", base={"name": "SGD"}), TRAM),
        (OutputBiasForgettingConfig(name="output_bias_forgetting"), OutputBiasForgetting),
    ],
)
def test_what_a_config_leaves_out_is_what_the_class_would_take(config: Any, made: type) -> None:
    own = config.model_dump(exclude={"name", "base", "max_grad_norm", "ascent", "perturb", "perturbation"})
    assert own.items() <= defaults_of(made).items()


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        (f"name: Plain, {SGD}", False),
        (f"name: SAM, {SGD}", False),
        (f"name: SAM, {SGD}, {OBF}", True),
        (f"name: TRAM, {SGD}", True),
        (f"name: TRAM, {SGD}, trust: noise", True),
        (f"name: TRAM, {SGD}, trust: fisher", False),
        (f"name: TRAM, {SGD}, trust: fisher, {OBF}", True),
    ],
)
def test_logits_are_asked_for_where_they_are_needed(optim: str, expected: bool) -> None:
    assert demo(optim).optim.needs_logits is expected


@pytest.mark.parametrize(
    "optim",
    [
        *(f"name: TRAM, {SGD}, trust: {trust}, rho: 2.0" for trust in ("previous", "initial", "noise", "fisher")),
        f"name: TRAM, {SGD}, {OBF}",
        f"name: SAM, {SGD}, {OBF}",
    ],
)
def test_what_a_config_builds_takes_two_steps(optim: str) -> None:
    config = demo(optim)
    torch.manual_seed(0)
    net = build_net(config, classes=4).train()
    objective = SupervisedObjective(build_loss(config), outputs=config.optim.needs_logits)
    optimizer = config.optim.build(net, objective)
    shape = (1, 1, *config.training.patch_size)
    batch = {"image": torch.randn(shape), "label": torch.randint(0, 4, shape)}
    before = [param.detach().clone() for param in net.parameters()]
    for _ in range(2):
        optimizer.step(lambda: objective(net, batch), ascent=config.optim.build_ascent())
    assert optimizer.skipped_steps == 0
    assert any(not torch.equal(param, start) for param, start in zip(net.parameters(), before, strict=True))
    if isinstance(optimizer, TRAM) and "fisher" not in optim:
        assert optimizer.distance > 0
        assert optimizer.param_groups[0]["rho"] == config.optim.rho


def test_an_ascents_options_reach_it() -> None:
    options = "gamma: 0.5, form: sigmoid, class_mean: true, ignore_label: 3, uniform_probability: 0.25"
    ascent = demo(f"name: SAM, {SGD}, ascent: {{name: output_bias_forgetting, {options}}}").optim.build_ascent()
    assert isinstance(ascent, OutputBiasForgetting)
    assert vars(ascent) == {
        "gamma": 0.5,
        "uniform_probability": 0.25,
        "always": False,
        "form": "sigmoid",
        "class_mean": True,
        "ignore_label": 3,
    }


def test_without_an_ascent_the_loss_is_climbed() -> None:
    assert demo(f"name: SAM, {SGD}").optim.build_ascent() is None


def test_an_ascent_that_nothing_climbs_is_refused_with_reason_and_alternative() -> None:
    with pytest.raises(UsageError, match=r"Plain never climbs, so it cannot take the ascent .* such as SAM or ASAM"):
        demo(f"name: Plain, {SGD}, {OBF}")


@pytest.mark.parametrize("name", CANNOT_CLIMB)
def test_every_optimizer_without_a_climb_of_its_own_refuses_an_ascent(name: str) -> None:
    check_ascent(name, None)
    with pytest.raises(ValueError, match=f"{name} .* so it cannot take the ascent output_bias_forgetting; leave"):
        check_ascent(name, OutputBiasForgettingConfig(name="output_bias_forgetting"))


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        (f"name: SAM, {SGD}, ascent: {{name: forgetting}}", "output_bias_forgetting"),
        (f"name: SAM, {SGD}, ascent: {{name: output_bias_forgetting, gamma: 2}}", r"optim\.ascent\.gamma"),
        (
            f"name: SAM, {SGD}, ascent: {{name: output_bias_forgetting, always: true, uniform_probability: 0.5}}",
            "optim: with always=True no uniform_probability is used",
        ),
        (f"name: TRAM, {SGD}, trust: theta", r"optim\.trust"),
        (f"name: TRAM, {SGD}, min_distance: 2, max_distance: 1", "optim: distances must be bounded by 0 <= min"),
        (f"name: TRAM, {SGD}, trust: fisher, max_distance: 1", "optim: trust=.fisher. measures no distance"),
    ],
)
def test_a_wrong_option_is_named_before_anything_runs(optim: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        demo(optim)


def test_an_unknown_ascent_is_refused_by_the_part_alone() -> None:
    with pytest.raises(ValidationError, match="output_bias_forgetting"):
        OutputBiasForgettingConfig(name="unlearning")


def test_the_optimizers_refuse_exactly_the_ascents_that_the_configuration_refuses() -> None:
    members = [get_args(config.model_fields["name"].annotation)[0] for config in get_args(get_args(OptimConfig)[0])]
    net, objective = nn.Linear(2, 2), SupervisedObjective(nn.MSELoss())
    made = {name: demo(f"name: {name}, {SGD}").optim.build(net, objective) for name in members}
    refusing = {name for name, member in made.items() if not member._rule.takes_ascent}
    assert len(made) == 10
    assert refusing == CANNOT_CLIMB.keys() - {"Plain"}  # which climbs nothing, and so ignores an ascent
