"""Low-bit runs: options, and combinations that are rejected."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from uumamba import optim
from uumamba.config import RunConfig, read_config
from uumamba.config.bind import Part, read_part
from uumamba.config.optim import build_optimizer, parameter_groups
from uumamba.config.quantization import attach_gaqat, check_takes_effect
from uumamba.pipelines.build import build_loss
from uumamba.quantization import quantized_layers, quantizer_scales
from uumamba.runtime.errors import UsageError
from uumamba.training import SupervisedObjective

SAGM = "optim={name: SAGM, base: {name: AdamW, lr: 0.001}}"


def demo(quantization: str, *overrides: str) -> RunConfig:
    return read_config("demo", [f"quantization={quantization}", *overrides])


BUDGET = "schedule={name: budget, minutes: 1}"


def waiting(steps: int, gaqat: str = "null") -> str:
    return f"{{weight_bits: 7, act_bits: null, per_channel: true, start_step: {steps}, gaqat: {gaqat}}}"


@pytest.mark.parametrize("schedule", [[], [BUDGET]])
@pytest.mark.parametrize(
    ("quantization", "key", "got"),
    [
        (waiting(2000), "start_step", 2000),
        (waiting(600), "start_step", 600),
        ("{gaqat: {every: 999999}}", "gaqat.every", 999999),
        ("{gaqat: {every: 600}}", "gaqat.every", 600),
        ("{gaqat: {every: 601, mode: alternate}}", "gaqat.every", 601),
        (waiting(599, "{every: 2}"), "gaqat.every", 2),
        (waiting(400, "{every: 300, mode: smooth}"), "gaqat.every", 300),
        (waiting(400, "{every: 200, mode: alternate}"), "gaqat.every", 200),
    ],
)
def test_a_start_after_the_last_step_is_rejected(refused, quantization, key, got, schedule) -> None:
    config = demo(quantization, SAGM, *schedule)  # 600 steps
    with refused(f"quantization.{key}", got=got):
        config.check_takes_effect()


@pytest.mark.parametrize(
    "quantization",
    [
        waiting(599),
        waiting(599, "{every: 2, mode: always}"),
        waiting(597, "{every: 599}"),
        waiting(450, "{every: 150, mode: alternate}"),
        "{gaqat: {every: 599}}",
        "{gaqat: {every: 999, mode: always}}",
        "{gaqat: {every: 999, mode: never}}",
    ],
)
def test_a_start_before_the_last_step_or_a_mode_without_window_is_accepted(quantization: str) -> None:
    demo(quantization, SAGM).check_takes_effect()


@pytest.mark.parametrize(
    ("mode", "threshold"), [("task", 0.5), ("smooth", 1.0), ("task", 1.1), ("alternate", 0.3), ("always", 0.3)]
)
@pytest.mark.parametrize("every", [2, 3, 4])
def test_the_shortest_accepted_run_is_the_first_that_gaqat_changes(every: int, mode: Any, threshold: float) -> None:
    gaqat = {"every": every, "threshold": threshold, "mode": mode}
    for start_step in range(8):
        options = {"weight_bits": 2, "act_bits": None, "start_step": start_step}
        with_it, without = (read_part("quantization", options | {"gaqat": each}) for each in (gaqat, None))
        trainings = zip(scales_by_step(with_it), scales_by_step(without), strict=True)
        first = next(step for step, (one, other) in enumerate(trainings, start=1) if not torch.equal(one, other))
        check_takes_effect(with_it, first)
        with pytest.raises(UsageError):
            check_takes_effect(with_it, first - 1)


def scales_by_step(quantization: Part) -> list[torch.Tensor]:
    """Return the scale after each of twenty steps without a sign change."""
    torch.manual_seed(0)
    net, x, found = quantization.bind()(nn.Linear(3, 2)), torch.randn(4, 3), []
    optimizer = optim.SAGM(net.parameters(), partial(torch.optim.SGD, lr=1e-4), rho=0.01)
    (scale,) = quantizer_scales(net).values()
    attach_gaqat(quantization, optimizer, net)
    for _ in range(20):
        optimizer.step(lambda: net(x).square().sum())
        found.append(scale.detach().clone())
    return found


def test_an_override_of_a_layers_bits_reaches_it() -> None:
    config = demo("{weight_bits: 3, act_bits: null, overrides: {'decoder.seg_layers.*': 7}}")
    layers = list(quantized_layers(config.quantization.bind()(config.build_net(classes=4))))
    bits = {layer.name: layer.weight.bits for layer in layers}
    assert {bits[name] for name in bits if "seg_layers" in name} == {7}
    assert set(bits.values()) == {3, 7, 8}, "the first layer has first_last_bits"
    assert all(layer.input is None for layer in layers)


@pytest.mark.parametrize("perturb", ["all", "norm_layers"])
def test_scales_are_not_decayed_and_other_groups_do_not_change(perturb: str) -> None:
    config = demo("{}", SAGM, f"optim.perturb={perturb}", "optim.base.weight_decay=0.3")
    net, objective = config.build_net(classes=4), SupervisedObjective(build_loss(config))
    before = [len(group["params"]) for group in parameter_groups(net, objective, perturb=perturb)]
    scales = set(quantizer_scales(config.quantization.bind()(net)).values())
    found = build_optimizer(config.optim, net, objective).param_groups
    assert scales
    own = [group for group in found if scales & set(group["params"])]
    assert scales == {param for group in own for param in group["params"]}, "nothing else is in their group"
    assert [(group["weight_decay"], group["perturb"]) for group in own] == [(0.0, perturb == "all")]
    assert [len(group["params"]) for group in found if not scales & set(group["params"])] == before


def test_steps_are_counted_and_gaqat_is_attached_to_the_optimizer() -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    config = demo("{weight_bits: 2, act_bits: null, start_step: 2, gaqat: {every: 2, threshold: 1.1}}", SAGM)
    config.quantization.bind()(net)
    optimizer = build_optimizer(config.optim, net, nn.Identity())
    gaqat = attach_gaqat(config.quantization, optimizer, net)
    for left, frozen in ((1, 0), (0, 1)):
        optimizer.step(lambda: net(torch.randn(4, 3)).square().sum())
        assert int(net.parametrizations.weight[0].steps_left) == left
        assert gaqat.frozen_fraction == frozen, "everything, after a window of two steps"


@pytest.mark.parametrize("nothing", ["None", "null"])
def test_none_of_python_and_null_of_yaml_mean_full_precision(nothing: str) -> None:
    widths = ", ".join(f"{name}: {nothing}" for name in ("act_bits", "first_last_bits"))
    config = demo(f"{{weight_bits: 3, {widths}, overrides: {{'decoder.*': {nothing}}}}}")
    assert (config.quantization.act_bits, config.quantization.first_last_bits) == (None, None)
    assert demo(f"{{weight_bits: {nothing}}}").quantization.weight_bits is None
    names = [layer.name for layer in quantized_layers(config.quantization.bind()(config.build_net(classes=4)))]
    assert names
    assert not any(name.startswith("decoder.") for name in names)


def test_an_optimizer_without_perturbation_is_quantized() -> None:
    demo("{weight_bits: 4}", "optim={name: Plain, base: {name: AdamW, lr: 0.001}}").check()
