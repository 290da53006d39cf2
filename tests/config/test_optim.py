"""Every member of the family by its name, with the options and the defaults of its class."""

import inspect
import math
from typing import Any, get_args

import pytest
import torch
from torch import nn

from uumamba import optim
from uumamba.config import RunConfig, read_config
from uumamba.config.base import Config
from uumamba.config.optim import AdaptiveTriggerConfig, OptimConfig, parameter_groups
from uumamba.optim import AdaptiveTrigger, LookSAM, SharpnessAware
from uumamba.pipelines.build import build_loss, build_net
from uumamba.runtime.errors import UsageError
from uumamba.training import SupervisedObjective

CONFIGS: dict[str, type[Config]] = {
    get_args(config.model_fields["name"].annotation)[0]: config for config in get_args(get_args(OptimConfig)[0])
}
OF_THE_CONFIG = {"name", "base", "max_grad_norm", "ascent", "perturb", "perturbation"}


def demo(optimizer: str) -> RunConfig:
    """The demo's run with the smallest patch that leaves two bottleneck voxels."""
    divisor = read_config("demo").net.divisor()
    patch = [*divisor[:-1], 2 * divisor[-1]]
    return read_config("demo", [f"optim={{{optimizer}}}", f"training.patch_size={patch}", "training.batch_size=1"])


def own_options(made: type) -> dict[str, Any]:
    """Options of the class itself, with their defaults."""
    parameters = inspect.signature(made).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def test_every_member_of_the_family_has_a_name_in_a_config() -> None:
    members = {name for name in optim.__all__ if inspect.isclass(getattr(optim, name))}
    members = {name for name in members if issubclass(getattr(optim, name), SharpnessAware)} - {"SharpnessAware"}
    assert len(members) >= 9
    assert set(CONFIGS) == members


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"TRAM"}))  # which takes callables as well
def test_options_and_defaults_are_those_of_the_class(name: str) -> None:
    config = CONFIGS[name](name=name, base={"name": "SGD"})
    assert {key: value for key, value in config if key not in OF_THE_CONFIG} == own_options(getattr(optim, name))


def test_so_are_those_of_the_trigger() -> None:
    assert AdaptiveTriggerConfig(total_steps=7).build() == AdaptiveTrigger(total_steps=7)


@pytest.mark.parametrize("perturb", ["all", "norm_layers"])
@pytest.mark.parametrize("name", sorted({"GSAM", "FriendlySAM", "LookSAM", "MSAM", "StaleSAM", "SAGM"}))
def test_a_new_member_is_built_and_climbs_what_it_shall(name: str, perturb: str) -> None:
    config = demo(f"name: {name}, rho: 0.3, perturb: {perturb}, base: {{name: SGD, lr: 0.001}}")
    torch.manual_seed(0)
    net, objective = build_net(config, classes=4).train(), SupervisedObjective(build_loss(config))
    optimizer = config.optim.build(net, objective)
    assert type(optimizer).__name__ == name
    assert optimizer.net is net
    assert optimizer.max_grad_norm == 12.0
    held = [param for group in optimizer.param_groups for param in group["params"]]
    assert {id(param) for param in held} == {id(param) for part in (net, objective) for param in part.parameters()}
    assert len(held) == len({id(param) for param in held})

    shape = (1, 1, *config.training.patch_size)
    batch = {"image": torch.randn(shape), "label": torch.randint(0, 4, shape)}
    seen = []

    def closure() -> torch.Tensor:
        seen.append({key: param.detach().clone() for key, param in net.named_parameters()})
        return objective(net, batch)

    if name in ("MSAM", "StaleSAM"):
        optimizer.step(closure)
    before = {key: param.detach().clone() for key, param in net.named_parameters()}
    optimizer.step(closure)
    moved = {key for key in before if not torch.equal(seen[-1][key], before[key])}
    assert moved
    if perturb == "norm_layers":
        assert all("norm" in key for key in moved)
        assert math.isclose(sum((seen[-1][key] - before[key]).square().sum() for key in moved) ** 0.5, 0.3, rel_tol=0.1)
    else:
        assert not all("norm" in key for key in moved)


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"Plain"}))
def test_ranks_climb_together_where_the_config_says_so(name: str) -> None:
    net = nn.Conv2d(1, 2, 3)
    for option, expected in ((", perturbation: global", "global"), ("", "rank")):
        config = demo(f"name: {name}{option}, base: {{name: SGD, momentum: 0.9, nesterov: false}}")
        assert config.optim.build(net, nn.Identity()).perturbation == expected


def test_a_trigger_is_built_with_its_owner() -> None:
    config = demo("name: LookSAM, trigger: {total_steps: 40, start: 2.0}, base: {name: SGD}")
    net = build_net(config, classes=4)
    optimizer = config.optim.build(net, SupervisedObjective(build_loss(config)))
    assert isinstance(optimizer, LookSAM)
    assert config.optim.trigger == AdaptiveTriggerConfig(total_steps=40, start=2.0)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("name: GSAM, rho_min: 0.01", "optim: rho_min and lr_max belong together, got rho_min 0.01 and lr_max None"),
        ("name: LookSAM, k: 0", r"optim\.k: .*greater than 0"),
        ("name: LookSAM, trigger: {start: 1.0}", r"optim\.trigger\.total_steps is missing"),
        ("name: FriendlySAM, lam: 1.0", r"optim\.lam: .*less than 1"),
        ("name: SAGM, alpha: -1", r"optim\.alpha: .*greater than or equal to 0"),
        ("name: SAM, perturb: norms", r"optim\.perturb: Input should be 'all' or 'norm_layers'.*found 'norms'"),
        ("name: Plain, perturb: all", r"optim\.perturb is not a known key"),
        ("name: SAM, perturbation: one", r"optim\.perturbation: Input should be 'rank' or 'global'.*found 'one'"),
    ],
)
def test_options_of_no_use_are_refused(optimizer: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        demo(f"{optimizer}, base: {{name: SGD}}")


def test_momentum_to_climb_along_is_asked_of_the_base() -> None:
    with pytest.raises(UsageError, match=r"optim: The base is SGD with momentum 0 in parameter group 0\. MSAM"):
        demo("name: MSAM, base: {name: SGD, momentum: 0, nesterov: false}")


def test_norm_layers_are_asked_of_the_network() -> None:
    with pytest.raises(ValueError, match="Conv2d has no norm layer with parameters"):
        parameter_groups(nn.Conv2d(1, 2, 3), nn.Identity(), perturb="norm_layers")


def test_what_is_frozen_stays_out_of_the_groups() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.LayerNorm(2))
    net[1].requires_grad_(False)
    net[0].bias.requires_grad_(False)
    groups = parameter_groups(net, nn.Identity(), perturb="norm_layers")
    assert [[id(param) for param in group["params"]] for group in groups] == [
        [id(net[2].weight), id(net[2].bias)],
        [id(net[0].weight)],
    ]
