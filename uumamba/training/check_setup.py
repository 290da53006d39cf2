"""Checks of a trainer's objects and options before training starts."""

from typing import get_args

from torch import nn

from uumamba.optim import SharpnessAware
from uumamba.runtime.autocast import Precision
from uumamba.runtime.errors import require
from uumamba.types import Objective


def check_setup(
    net: nn.Module,
    objective: Objective,
    optimizer: SharpnessAware,
    *,
    precision: str,
    save_every_minutes: float | None,
    **counts: int,
) -> None:
    """Check that the optimizer holds every trainable parameter, and check options.

    Args:
        net: the network.
        objective: its parameters should be trained too.
        optimizer: an optimizer of uumamba.optim, with a scaler for float16.
        precision: precision of autocast.
        save_every_minutes: at least 0, or None.
        counts: integers of at least 1, by name.

    Raises:
        UsageError: the key names the option, or the first missing parameter.
    """
    require(
        isinstance(optimizer, SharpnessAware),
        "optimizer",
        got=type(optimizer).__name__,
        expected="an optimizer of uumamba.optim",
        fix="pass Plain(net.parameters(), partial(torch.optim.SGD, lr=0.01))",
    )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    trainable = {f"net.{name}": value for name, value in net.named_parameters()}
    if isinstance(objective, nn.Module):
        trainable |= {f"objective.{name}": value for name, value in objective.named_parameters()}
    missing = [name for name, value in trainable.items() if value.requires_grad and id(value) not in held]
    require(
        not missing,
        "optimizer",
        got=f"no {' '.join(missing[:1])} ({len(missing)} parameters are missing)",
        expected="every parameter that requires a gradient",
        fix="give all parameters to the optimizer, or set requires_grad to False",
    )
    require(precision in get_args(Precision), "precision", got=precision, expected=" or ".join(get_args(Precision)))
    require(
        precision != "float16" or optimizer.scaler is not None,
        "precision",
        got=precision,
        expected="float32 or bfloat16 for an optimizer without a gradient scaler",
        fix="make the optimizer with scaler=torch.amp.GradScaler(), or choose bfloat16",
    )
    require(
        save_every_minutes is None or save_every_minutes >= 0,
        "save_every_minutes",
        got=save_every_minutes,
        expected="a number of at least 0, or None to save at the ends of epochs only",
    )
    for name, number in counts.items():
        require(number >= 1, name, got=number, expected="an integer of at least 1")
