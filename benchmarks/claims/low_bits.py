"""Quantization-aware trainings in few bits on rotated digits.

All methods start from the same trained network.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.claims.measures import accuracy
from benchmarks.claims.rotated_digits import (
    SOURCES,
    UNSEEN,
    build_perceptron,
    draw_batches,
    make_test_set,
    make_training_set,
)
from benchmarks.claims.run_log import Measured, Run
from benchmarks.claims.training import Recipe, train
from uumamba.optim import SAGM, Plain, SharpnessAware
from uumamba.quantization import (
    GAQAT,
    Window,
    calibrate,
    count_steps,
    packed_bytes,
    quantize_,
    quantized_layers,
    scale_groups,
)
from uumamba.runtime.seeds import seed_everything
from uumamba.training import SupervisedObjective

FULL_SHARE = 2 / 3
"""Share of a run's steps in full precision; the other steps use quantized weights and activations."""
LEARNING_RATE, WINDOWS = 1e-3, 6
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "2 bits": {"weight_bits": 2, "act_bits": 2, "first_last_bits": None},
    "3 bits": {"weight_bits": 3, "act_bits": 3, "first_last_bits": None},
    "4 bits": {"weight_bits": 4, "act_bits": 4, "first_last_bits": None},
    "2 bits, ends 8": {"weight_bits": 2, "act_bits": 2},
    "4 bits, ends 8": {"weight_bits": 4, "act_bits": 4},
    "7 bits, weights alone": {"weight_bits": 7, "act_bits": None, "per_channel": True, "first_last_bits": None},
}
CANDIDATES = torch.linspace(0.2, 2.0, 91)


@dataclass(frozen=True)
class Method:
    """Method for the last third of a run.

    Attributes:
        optimizer: the optimizer class around Adam; None trains nothing in this part.
        gaqat: options of GAQAT; None does not use it.
    """

    optimizer: Callable[..., SharpnessAware] | None = None
    gaqat: Mapping[str, Any] | None = None


@dataclass
class FrozenFractions:
    """Callback that records the frozen fraction of each window."""

    fractions: list[float] = field(default_factory=list)

    def __call__(self, window: Window) -> None:
        """Record one window."""
        self.fractions.append(window.frozen_fraction)


METHODS: Mapping[str, Method] = {
    "PTQ": Method(),
    "PTQ, least squares": Method(),
    "LSQ": Method(Plain),
    "SAGM": Method(SAGM),
    "GAQAT": Method(SAGM, {}),
    "GAQAT, smooth": Method(SAGM, {"mode": "smooth"}),
    "GAQAT, always": Method(SAGM, {"mode": "always"}),
    "GAQAT, alternate": Method(SAGM, {"mode": "alternate"}),
}


def perform(run: Run) -> Measured:
    """Train and measure one run, independent of process and time."""
    seed_everything(run.seed)
    if run.method == "full precision":
        return _measure(_train_full_precision(run.seed, run.steps))
    if run.method == "QT-DoG":
        return _measure(_train_rounded_late(run))
    net = deepcopy(_train_full_precision(run.seed, round(run.steps * FULL_SHARE)))
    _quantize_network(net, run)
    method, frozen = METHODS[run.method], FrozenFractions()
    if method.optimizer is not None:
        optimizer = method.optimizer(scale_groups(net), partial(torch.optim.Adam, lr=run.lr))
        steps = run.steps - round(run.steps * FULL_SHARE)
        if method.gaqat is not None:
            GAQAT(optimizer, net, every=steps // WINDOWS, log=frozen, **method.gaqat)
        _train(net, optimizer, run.seed, steps, "rounded")
    fraction = {"frozen fraction": fmean(frozen.fractions)} if frozen.fractions else {}
    return _measure(net.eval()) | fraction | {"weight bytes": packed_bytes(net)}


def fit_scales(net: nn.Module, images: Tensor) -> None:
    """Set every quantizer's scale to the candidate with the least squared error.

    Candidates are multiples of the current scale. This is post-training quantization (PTQ) without training: weights
    keep their values, and activations are fitted layer by layer.
    """
    for layer in quantized_layers(net):
        if layer.weight is not None:
            _fit_scale(layer.weight, layer.full_weight.detach())
        if layer.input is not None:
            _fit_scale(layer.input, _record_input(layer.input, net, images))


@torch.no_grad()
def _record_input(quantizer: nn.Module, net: nn.Module, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    with quantizer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0])):
        net(images)
    return seen[0]


@torch.no_grad()
def _fit_scale(quantizer: Any, values: Tensor) -> None:
    tried = [(quantizer.scale * factor).clone() for factor in CANDIDATES]
    errors = []
    for scale in tried:
        quantizer.scale.copy_(scale)
        errors.append(float((quantizer(values) - values).square().mean()))
    quantizer.scale.copy_(tried[errors.index(min(errors))])


def _quantize_network(net: nn.Module, run: Run) -> None:
    """Quantize and calibrate on four batches of the training set."""
    quantize_(net, **SETTINGS[run.setting])
    training = make_training_set(run.seed)
    images = [batch["image"] for _, batch in islice(draw_batches(training, run.seed, "calibration"), 4)]
    calibrate(net.eval(), images)
    if run.method == "PTQ, least squares":
        fit_scales(net, torch.cat(images))


@cache
def _train_full_precision(seed: int, steps: int) -> nn.Module:
    """Train in full precision; cached per process, deterministic."""
    net = build_perceptron(seed)
    _train(net, Plain(net.parameters(), partial(torch.optim.Adam, lr=LEARNING_RATE)), seed, steps, "full")
    return net.eval()


def _train_rounded_late(run: Run) -> nn.Module:
    """Train with quantized weights in the last third only."""
    net = quantize_(build_perceptron(run.seed), **SETTINGS[run.setting], start_step=round(run.steps * FULL_SHARE))
    optimizer = Plain(scale_groups(net), partial(torch.optim.Adam, lr=run.lr))
    count_steps(net, optimizer)
    _train(net, optimizer, run.seed, run.steps, "full")
    return net.eval()


def _train(net: nn.Module, optimizer: SharpnessAware, seed: int, steps: int, key: str) -> None:
    recipe = Recipe(net, SupervisedObjective(nn.CrossEntropyLoss()), optimizer)
    train(recipe, draw_batches(make_training_set(seed), seed, key), steps=steps)


def _measure(net: nn.Module) -> Measured:
    seen = [accuracy(net, make_test_set(angle).images, make_test_set(angle).labels) for angle in SOURCES]
    unseen = make_test_set(UNSEEN)
    return {"seen angles": fmean(seen), "unseen angle": accuracy(net, unseen.images, unseen.labels)}
