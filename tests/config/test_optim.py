"""Optimizers built by a configuration: parameters, perturbation and rejections."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from uumamba.config import RunConfig, read_config
from uumamba.config.bind import bind, read_part
from uumamba.config.net import find_divisor
from uumamba.config.optim import build_ascent, build_optimizer, can_fuse, needs_logits, parameter_groups
from uumamba.config.registry import KINDS
from uumamba.optim import AdaptiveTrigger, LookSAM, OutputBiasForgetting
from uumamba.pipelines.build import build_loss
from uumamba.training import SupervisedObjective

MEMBERS = [*KINDS["optim"].parts]
SGD = "base: {name: SGD, lr: 0.001, momentum: 0.9}"
OBF = "ascent: {name: output_bias_forgetting}"


def demo(optimizer: str) -> RunConfig:
    """Read the demo's run with the smallest patch of two bottleneck voxels."""
    divisor = find_divisor(read_config("demo").net, axes=2)
    patch = [*divisor[:-1], 2 * divisor[-1]]
    return read_config("demo", [f"optim={{{optimizer}}}", f"training.patch_size={patch}", "training.batch_size=1"])


@pytest.mark.parametrize(
    "options",
    [
        *(f"name: {name}, rho: 0.3" for name in MEMBERS if name not in ("Plain", "TRAM")),
        *(f"name: SAM, rho: 0.3, perturb: norm_layers{ascent}" for ascent in ("", f", {OBF}")),
        *(f"name: TRAM, rho: 2.0, trust: {trust}" for trust in ("previous", "initial", "noise", "fisher")),
        f"name: TRAM, {OBF}",
    ],
)
def test_an_optimizer_of_a_config_has_every_parameter_and_perturbs_the_selected_ones(options: str) -> None:
    config = demo(f"{options}, {SGD}")
    torch.manual_seed(0)
    net = config.build_net(classes=4).train()
    objective = SupervisedObjective(build_loss(config), outputs=needs_logits(config.optim))
    optimizer = build_optimizer(config.optim, net, objective)
    assert (type(optimizer).__name__, optimizer.net, optimizer.max_grad_norm) == (config.optim.name, net, None)
    held = [id(param) for group in optimizer.param_groups for param in group["params"]]
    assert sorted(held) == sorted(id(param) for part in (net, objective) for param in part.parameters())

    shape = (1, 1, *config.training.patch_size)
    batch = {"image": torch.randn(shape), "label": torch.randint(0, 4, shape)}
    at_pass: list[dict[str, torch.Tensor]] = []

    def closure() -> object:
        at_pass.append({key: param.detach().clone() for key, param in net.named_parameters()})
        return objective(net, batch)

    moves = []
    for _ in range(2):
        before = {key: param.detach().clone() for key, param in net.named_parameters()}
        optimizer.step(closure, ascent=build_ascent(config.optim))
        steps = {key: value - before[key] for key, value in at_pass[-1].items()}
        moves.append({key: step for key, step in steps.items() if step.any()})
    assert optimizer.skipped_steps == 0
    moved = next(filter(None, reversed(moves)))  # LookSAM perturbs only in the first step
    if "norm_layers" in options:
        assert all("norm" in key for key in moved)
        assert math.isclose(sum(step.square().sum() for step in moved.values()) ** 0.5, 0.3, rel_tol=0.1)
    else:
        assert not all("norm" in key for key in moved)


@pytest.mark.parametrize("name", MEMBERS[1:])
def test_perturbation_global_of_a_config_is_that_of_the_optimizer(name: str) -> None:
    for option, expected in ((", perturbation: global", "global"), ("", "rank")):
        config = demo(f"name: {name}{option}, base: {{name: SGD, momentum: 0.9, nesterov: false}}")
        assert build_optimizer(config.optim, nn.Conv2d(1, 2, 3), nn.Identity()).perturbation == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("name: Plain", False),
        ("name: SAM", False),
        (f"name: SAM, {OBF}", True),
        ("name: TRAM", True),
        ("name: TRAM, trust: noise", True),
        ("name: TRAM, trust: fisher", False),
        (f"name: TRAM, trust: fisher, {OBF}", True),
    ],
)
def test_needs_logits_is_true_for_an_ascent_and_for_distances_of_tram(options: str, expected: bool) -> None:
    assert needs_logits(demo(f"{options}, {SGD}").optim) is expected


def test_options_of_an_ascent_and_of_a_trigger_reach_them() -> None:
    options = "gamma: 0.5, form: sigmoid, class_mean: true, ignore_label: 3, uniform_probability: 0.25"
    config = demo(f"name: SAM, {SGD}, ascent: {{name: output_bias_forgetting, {options}}}")
    expected = OutputBiasForgetting(
        gamma=0.5, form="sigmoid", class_mean=True, ignore_label=3, uniform_probability=0.25
    )
    assert vars(build_ascent(config.optim)) == vars(expected)
    assert build_ascent(demo(f"name: SAM, {SGD}").optim) is None
    config = demo(f"name: LookSAM, trigger: {{total_steps: 40, start: 2.0}}, {SGD}")
    optimizer = build_optimizer(config.optim, nn.Linear(2, 2), nn.Identity())
    assert isinstance(optimizer, LookSAM)
    assert config.optim.trigger.bind()() == AdaptiveTrigger(total_steps=40, start=2.0)


def test_a_config_rejects_an_ascent_exactly_where_the_optimizer_does(refused) -> None:
    for name in MEMBERS:
        part = demo(f"name: {name}, {SGD}").optim
        optimizer = build_optimizer(part, nn.Linear(2, 2), SupervisedObjective(nn.MSELoss()))
        # Only a private attribute shows whether a rule accepts an ascent; Plain never perturbs and ignores it.
        assert optimizer.accepts_ascent == (name != "Plain" and optimizer._rule.accepts_ascent)
        if not optimizer.accepts_ascent:
            with refused("optim.ascent", got="output_bias_forgetting"):
                demo(f"name: {name}, {SGD}, {OBF}")


def test_perturbing_norm_layers_needs_norm_layers() -> None:
    with pytest.raises(ValueError, match="norm layer"):
        parameter_groups(nn.Conv2d(1, 2, 3), nn.Identity(), perturb="norm_layers")


def test_frozen_parameters_are_left_out_of_the_groups() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.LayerNorm(2))
    net[1].requires_grad_(False)
    net[0].bias.requires_grad_(False)
    norms, rest = parameter_groups(net, nn.Identity(), perturb="norm_layers")
    assert [id(param) for param in norms["params"]] == [id(net[2].weight), id(net[2].bias)]
    assert [id(param) for param in rest["params"]] == [id(net[0].weight)]


@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9, "nesterov": True}), ("AdamW", {})])
def test_a_config_builds_a_fused_base_that_equals_the_unfused_one(name: str, options: dict[str, Any]) -> None:
    def step(weight: torch.Tensor, base: torch.optim.Optimizer) -> None:
        weight.grad = weight.detach() ** 2 - 0.5
        base.step()

    one, other = (torch.linspace(-1, 1, 1001, dtype=torch.float64).requires_grad_() for _ in range(2))
    make = bind("base", name, options | {"lr": 0.1})
    fused, unfused = partial(make, fused=True)([one]), make([other])
    assert (bool(fused.defaults["fused"]), bool(unfused.defaults["fused"])) == (True, False)
    for _ in range(5):
        step(one, fused)
        step(other, unfused)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
    sam = read_part("optim", {"name": "SAM", "base": {"name": name}})
    assert build_optimizer(sam, nn.Linear(2, 2), nn.Identity()).base.defaults["fused"]


def test_only_weights_on_a_real_device_are_fused() -> None:
    with torch.device("meta"):
        assert not can_fuse(nn.Linear(2, 2))
    assert can_fuse(nn.Linear(2, 2))
