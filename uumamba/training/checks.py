"""What a trainer refuses before it starts: set-ups that would train nothing, or not all of it, without a word."""

from torch import nn

from uumamba.optim import SharpnessAware
from uumamba.runtime.errors import UsageError
from uumamba.types import Objective


def check_counts(**counts: int) -> None:
    """Refuse a count below 1.

    Raises:
        ValueError: the message names it.
    """
    for name, number in counts.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def check_minutes(minutes: float | None) -> None:
    """Refuse a time between checkpoints that is negative or not a number.

    Raises:
        ValueError: the message says what was found.
    """
    if minutes is not None and not minutes >= 0:
        raise ValueError(
            f"save_every_minutes must not be negative, got {minutes}; None saves at the ends of epochs alone"
        )


def check_precision(precision: str, optimizer: SharpnessAware) -> None:
    """Refuse an unknown precision, and float16 without a scaler.

    Raises:
        ValueError: it is unknown.
        UsageError: the scaler is missing.
    """
    if precision not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"precision must be float32, bfloat16 or float16, got {precision!r}")
    if precision == "float16" and optimizer.scaler is None:
        raise UsageError(
            "float16 needs a gradient scaler, or small gradients vanish; make the optimizer with "
            "scaler=torch.amp.GradScaler(), or choose bfloat16."
        )


def check_optimizer(net: nn.Module, objective: Objective, optimizer: SharpnessAware) -> None:
    """Refuse an optimizer that is not of the family, or does not hold every parameter that should learn.

    Raises:
        UsageError: the message names the first parameter that is missing.
    """
    if not isinstance(optimizer, SharpnessAware):
        raise UsageError(
            f"The trainer's optimizer must be of uumamba.optim, got {type(optimizer).__name__}; wrap it, such as "
            "Plain(net.parameters(), partial(torch.optim.SGD, lr=0.01))."
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    learning = {f"net.{name}": value for name, value in net.named_parameters()}
    if isinstance(objective, nn.Module):
        learning |= {f"objective.{name}": value for name, value in objective.named_parameters()}
    missing = [name for name, value in learning.items() if value.requires_grad and id(value) not in held]
    if missing:
        raise UsageError(
            f"{len(missing)} parameters would never learn, since the optimizer does not hold them, first {missing[0]}; "
            "give them to it, or set requires_grad to False."
        )
