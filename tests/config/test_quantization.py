"""A run in few bits: the options of the library under the same names, and what does not go together is refused."""

import inspect
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from uumamba import optim
from uumamba.config import RunConfig, read_config
from uumamba.config.optim import parameter_groups
from uumamba.config.quantization import GAQATConfig, QuantizationConfig
from uumamba.pipelines.build import build_loss, build_net
from uumamba.quantization import GAQAT, quantize_, quantized_layers, quantizer_scales
from uumamba.runtime.errors import UsageError
from uumamba.training import SupervisedObjective

SAGM = "optim={name: SAGM, base: {name: AdamW, lr: 0.001}}"


def demo(quantization: str, *overrides: str) -> RunConfig:
    return read_config("demo", [f"quantization={quantization}", *overrides])


def defaults(made: Any) -> dict[str, Any]:
    parameters = inspect.signature(made).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def test_options_and_defaults_are_those_of_the_library() -> None:
    own = QuantizationConfig().model_dump(exclude={"calibration_batches", "gaqat"})
    assert own == defaults(quantize_) | {"overrides": {}}
    assert GAQATConfig().model_dump() == {key: value for key, value in defaults(GAQAT).items() if key != "log"}


def test_without_the_key_a_run_is_in_full_precision() -> None:
    config = read_config("demo")
    assert config.quantization is None
    assert config.as_json()["quantization"] is None


@pytest.mark.parametrize(
    ("quantization", "overrides", "message"),
    [
        ("{weight_bits: 9}", [], r"weight_bits must be a whole number of bits from 2 to 8, got 9; leave a layer"),
        ("{act_bits: 1}", [], "act_bits must be a whole number of bits from 2 to 8, got 1"),
        ("{overrides: {'decoder.*': 12}}", [], r"overrides\['decoder\.\*'\] must be a whole number of bits from 2 to"),
        ("{overrides: {'head.*': 8}}", [], r"overrides names 'head\.\*', which is no layer to quantise; there are enc"),
        ("{weight_bits: null, act_bits: null}", [], "Neither weight_bits nor act_bits is given"),
        ("{start_step: 5}", [], r"start_step=5 makes weights alone wait, .*; give weight_bits and act_bits=None"),
        ("{calibration_batches: 41}", [], r"calibration_batches is 41 and training\.batches_per_epoch 40"),
        ("{}", ["objective={name: MESA}"], r"MESA's teacher is an average .*; set objective\.name=supervised"),
        ("{gaqat: {}}", [], r"gaqat .*found name SAM, perturb all, rho 0\.05; set optim\.name=SAGM and leave perturb"),
        ("{gaqat: {}}", [SAGM, "optim.perturb=norm_layers"], "gaqat .*found name SAGM, perturb norm_layers"),
        ("{gaqat: {}}", [SAGM, "optim.rho=0"], r"gaqat .*found name SAGM, perturb all, rho 0\.0"),
        ("{gaqat: {every: 1}}", [SAGM], "every must be at least 2, as a single gradient has no sign"),
    ],
)
def test_what_does_not_go_together_is_refused_when_it_is_read(
    quantization: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=rf"demo\.yaml: quantization: {message}"):
        demo(quantization, *overrides)


BUDGET = "schedule={name: budget, minutes: 1}"
STEPS = r"training\.epochs x training\.batches_per_epoch 600 steps"
WAITS = rf"start_step is {{}} and {STEPS}, .*; set start_step lower"
WINDOW = rf"gaqat\.every is {{}} and {STEPS}, .*; set gaqat\.every lower"
BOTH = rf"start_step is {{}}, gaqat\.every {{}} and {STEPS}, .* step {{}}; set start_step or gaqat\.every lower"


def waiting(steps: int, gaqat: str = "null") -> str:
    return f"{{weight_bits: 7, act_bits: null, per_channel: true, start_step: {steps}, gaqat: {gaqat}}}"


@pytest.mark.parametrize("schedule", [[], [BUDGET]])
@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (waiting(2000), WAITS.format(2000)),
        (waiting(600), WAITS.format(600)),
        ("{gaqat: {every: 999999}}", WINDOW.format(999999)),
        ("{gaqat: {every: 600}}", WINDOW.format(600)),
        ("{gaqat: {every: 601, mode: alternate}}", WINDOW.format(601)),
        (waiting(599, "{every: 2}"), BOTH.format(599, 2, 603)),
        (waiting(400, "{every: 300, mode: smooth}"), BOTH.format(400, 300, 601)),
        (waiting(400, "{every: 200, mode: alternate}"), BOTH.format(400, 200, 601)),
    ],
)
def test_what_the_runs_steps_never_reach_is_refused_before_a_training(
    quantization: str, message: str, schedule: list[str]
) -> None:
    config = demo(quantization, SAGM, *schedule)
    with pytest.raises(ValueError, match=rf"^quantization: {message}"):
        config.check_reached()


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
def test_what_the_last_step_reaches_or_needs_no_window_is_taken(quantization: str) -> None:
    demo(quantization, SAGM).check_reached()


def test_a_run_in_full_precision_has_nothing_to_reach() -> None:
    read_config("demo").check_reached()


@pytest.mark.parametrize(
    ("mode", "threshold"), [("task", 0.5), ("smooth", 1.0), ("task", 1.1), ("alternate", 0.3), ("always", 0.3)]
)
@pytest.mark.parametrize("every", [2, 3, 4])
def test_a_run_is_taken_from_the_length_on_at_which_gaqat_changes_it(every: int, mode: Any, threshold: float) -> None:
    gaqat = GAQATConfig(every=every, threshold=threshold, mode=mode)
    for start_step in range(8):
        with_it = QuantizationConfig(weight_bits=2, act_bits=None, start_step=start_step, gaqat=gaqat)
        without = with_it.model_copy(update={"gaqat": None})
        trainings = zip(scales_by_step(with_it), scales_by_step(without), strict=True)
        first = next(step for step, (one, other) in enumerate(trainings, start=1) if not torch.equal(one, other))
        with_it.check_reached(first)
        with pytest.raises(ValueError, match="lower or train longer"):
            with_it.check_reached(first - 1)


def scales_by_step(quantization: QuantizationConfig) -> list[torch.Tensor]:
    """The scale after each of twenty steps so small that its gradient never changes its sign."""
    torch.manual_seed(0)
    net, x, found = quantization.build(nn.Linear(3, 2)), torch.randn(4, 3), []
    optimizer = optim.SAGM(net.parameters(), partial(torch.optim.SGD, lr=1e-4), rho=0.01)
    (scale,) = quantizer_scales(net).values()
    quantization.attach(optimizer, net)
    for _ in range(20):
        optimizer.step(lambda: net(x).square().sum())
        found.append(scale.detach().clone())
    return found


def test_a_misspelt_key_is_named_with_the_nearest_known_one() -> None:
    with pytest.raises(UsageError, match=r"quantization\.gaqat\.treshold is not a known key \(did you mean threshold"):
        demo("{gaqat: {treshold: 0.2}}", SAGM)


def test_an_override_of_a_layers_bits_reaches_it() -> None:
    config = demo("{weight_bits: 3, act_bits: null, overrides: {'decoder.seg_layers.*': 7}}")
    layers = list(quantized_layers(config.quantization.build(build_net(config, classes=4))))
    bits = {layer.name: layer.weight.bits for layer in layers}
    assert {bits[name] for name in bits if "seg_layers" in name} == {7}
    assert set(bits.values()) == {3, 7, 8}, "the first layer has first_last_bits"
    assert all(layer.input is None for layer in layers)


@pytest.mark.parametrize("nothing", ["None", "null"])
def test_full_precision_is_asked_for_in_the_words_of_python_and_of_yaml(nothing: str) -> None:
    for name in ("weight_bits", "act_bits", "first_last_bits"):
        config = demo(f"{{{name}: {nothing}}}")
        assert getattr(config.quantization, name) is None


def test_a_layer_is_left_out_in_the_words_of_python_and_of_yaml() -> None:
    for nothing in ("None", "null"):
        config = demo(f"{{weight_bits: 3, act_bits: null, overrides: {{'decoder.*': {nothing}}}}}")
        assert config.quantization.overrides == {"decoder.*": None}
        names = [layer.name for layer in quantized_layers(config.quantization.build(build_net(config, classes=4)))]
        assert names
        assert not any(name.startswith("decoder.") for name in names)
    with pytest.raises(UsageError, match=r"overrides.* found 'none'"):
        demo("{overrides: {'decoder.*': none}}")


@pytest.mark.parametrize("perturb", ["all", "norm_layers"])
def test_scales_do_not_decay_and_all_else_is_as_without_them(perturb: str) -> None:
    config = demo("{}", SAGM, f"optim.perturb={perturb}", "optim.base.weight_decay=0.3")
    net, objective = build_net(config, classes=4), SupervisedObjective(build_loss(config))
    before = [len(group["params"]) for group in parameter_groups(net, objective, perturb=perturb)]
    scales = set(quantizer_scales(config.quantization.build(net)).values())
    found = config.optim.build(net, objective).param_groups
    assert scales
    own = [group for group in found if scales & set(group["params"])]
    assert scales == {param for group in own for param in group["params"]}, "nothing else is in their group"
    assert [(group["weight_decay"], group["perturb"]) for group in own] == [(0.0, perturb == "all")]
    assert [len(group["params"]) for group in found if not scales & set(group["params"])] == before


def test_groups_of_a_network_in_full_precision_are_as_before() -> None:
    net = nn.Linear(2, 2)
    assert parameter_groups(net, nn.Identity()) == [{"params": [net.weight, net.bias]}]


def test_steps_are_counted_and_gaqat_is_attached_to_the_optimizer() -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    config = demo("{weight_bits: 2, act_bits: null, start_step: 2, gaqat: {every: 2, threshold: 1.1}}", SAGM)
    config.quantization.build(net)
    optimizer = config.optim.build(net, nn.Identity())
    gaqat = config.quantization.attach(optimizer, net)
    for left, frozen in ((1, 0), (0, 1)):
        optimizer.step(lambda: net(torch.randn(4, 3)).square().sum())
        assert int(net.parametrizations.weight[0].steps_left) == left
        assert gaqat.frozen_fraction == frozen, "everything, after a window of two steps"
