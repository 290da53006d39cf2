"""Arguments of every optimizer out of range."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from tests.optim.shared_parts import MOMENTUM
from uumamba.optim import (
    ASAM,
    GSAM,
    MESA,
    MSAM,
    SAF,
    SAGM,
    SAM,
    TRAM,
    AdaptiveTrigger,
    FriendlySAM,
    LookSAM,
    OutputBiasForgetting,
    Plain,
)
from uumamba.runtime.errors import UsageError

WEIGHT = nn.Parameter(torch.ones(2, 2))
MAKE_MESA = partial(MESA, nn.CrossEntropyLoss(), nn.Linear(1, 2))
MAKE_SAF = partial(SAF, nn.CrossEntropyLoss(), samples=1, classes=2)
WITHOUT_PARAMS = (AdaptiveTrigger, OutputBiasForgetting, MAKE_MESA, MAKE_SAF)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_radius_out_of_range_is_rejected(sharpness_aware: str, value: float, training: Any) -> None:
    with pytest.raises(UsageError) as error:
        training(sharpness_aware, rho=value)
    assert (error.value.key, repr(error.value.got)) == ("rho", repr(value))


@pytest.mark.parametrize(
    ("make", "key", "value", "options"),
    [
        (Plain, "base", "NoneType", {"base": lambda groups: None}),
        (Plain, "base", "int", {"base": 3}),
        (Plain, "base", "an optimizer of other parameters", {"base": lambda groups: SGD([nn.Parameter(WEIGHT + 1)])}),
        (Plain, "params", "one tensor", {"params": WEIGHT}),
        (Plain, "max_grad_norm", 0, None),
        (Plain, "accumulation", "half", None),
        (Plain, "perturbation", "local", None),
        (SAM, "rho", -2.0, {"params": [{"params": [WEIGHT], "rho": -2.0}]}),
        (ASAM, "eta", -0.1, None),
        (GSAM, "alpha", -0.1, None),
        (GSAM, "rho_min", 0.01, None),
        (GSAM, "rho_min", None, {"lr_max": 0.1}),
        (GSAM, "rho_min", 0.1, {"rho_min": 0.1, "lr_max": 1.0}),
        (GSAM, "lr_max", 0.1, {"rho_min": 0.0, "lr_max": 0.1, "lr_min": 0.1}),
        (FriendlySAM, "sigma", -1.0, None),
        (FriendlySAM, "lam", 1.0, None),
        (LookSAM, "k", 0, None),
        (LookSAM, "alpha", -1.0, None),
        (SAGM, "alpha", -1.0, None),
        (MSAM, "base", "SGD with momentum 0", {"base": SGD}),
        (TRAM, "trust", "theta", None),
        (TRAM, "min_distance", -1.0, None),
        (TRAM, "max_distance", 1.0, {"min_distance": 2.0, "max_distance": 1.0}),
        (TRAM, "noise_at", "Identity", {"noise_at": nn.Identity()}),
        (partial(TRAM, trust="noise"), "sigma", 0.0, None),
        (partial(TRAM, trust="noise"), "net", None, None),
        (partial(TRAM, trust="fisher"), "max_distance", 1.0, None),
        (partial(TRAM, trust="fisher"), "min_distance", 1.0, None),
        (partial(TRAM, trust="fisher"), "eta", -1.0, None),
        (partial(TRAM, trust="fisher"), "gamma", 0.0, None),
        (AdaptiveTrigger, "total_steps", 0, {}),
        (AdaptiveTrigger, "decay", 1.0, {"total_steps": 9, "decay": 1.0}),
        (MAKE_MESA, "weight", -1.0, {}),
        (MAKE_MESA, "weight", math.inf, {}),
        (MAKE_MESA, "temperature", 0.0, {}),
        (MAKE_MESA, "decay", 1.0, {}),
        (MAKE_MESA, "decay", -0.1, {}),
        (MAKE_MESA, "start_step", -1, {}),
        (MAKE_SAF, "samples", 0, {}),
        (MAKE_SAF, "classes", 1, {}),
        (MAKE_SAF, "lag", 0, {}),
        (MAKE_SAF, "weight", -1.0, {}),
        (MAKE_SAF, "temperature", math.inf, {}),
        (MAKE_SAF, "start_epoch", -1, {}),
        (OutputBiasForgetting, "gamma", -0.1, {}),
        (OutputBiasForgetting, "uniform_probability", 1.0, {}),
        (OutputBiasForgetting, "uniform_probability", 0.5, {"always": True, "uniform_probability": 0.5}),
        (OutputBiasForgetting, "form", "linear", {}),
    ],
)
def test_arguments_out_of_range_are_rejected(
    make: Callable[..., Any], key: str, value: Any, options: dict[str, Any] | None, refused: Any
) -> None:
    needed = {} if make in WITHOUT_PARAMS else {"params": [WEIGHT], "base": MOMENTUM}
    with refused(key, got=value):
        make(**(needed | (options or {key: value})))
