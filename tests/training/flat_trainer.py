"""Trainer from flat options, so that a test names only those that it is about."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from uumamba.optim import SharpnessAware
from uumamba.training import (
    Execution,
    MovingAverage,
    Observer,
    Prefetcher,
    RunFolder,
    StepOptions,
    Trainer,
    Validation,
    standard_observers,
)


def make_trainer(
    net: nn.Module,
    objective: Any,
    optimizer: SharpnessAware,
    *,
    batches: Callable[[int], Any],
    epochs: int,
    augment: Any = None,
    read_ahead: bool = False,
    validate: Any = None,
    every: int = 1,
    scheduler: Any = None,
    ema_decay: float | None = None,
    run_dir: Any = None,
    progress: bool | None = None,
    log: Callable[[str], None] | None = None,
    observers: Sequence[Observer] = (),
    **options: Any,
) -> Trainer:
    """Make a trainer; other options are those of ``StepOptions``, ``Execution`` and ``RunFolder``."""
    step, execution = (
        kind(**{each.name: options.pop(each.name) for each in fields(kind) if each.name in options})
        for kind in (StepOptions, Execution)
    )
    net_of_average = net if execution.device == "cpu" else net.to(execution.device)
    folder = None if run_dir is None else RunFolder(run_dir, **options)
    if run_dir is None:
        RunFolder("unused", **options)  # for its checks
    return Trainer(
        net,
        objective,
        optimizer,
        batches=Prefetcher(batches, augment=augment, read_ahead=read_ahead),
        epochs=epochs,
        step=step,
        execution=execution,
        schedule=scheduler,
        average=None if ema_decay is None else MovingAverage(net_of_average, ema_decay),
        validation=None if validate is None else Validation(validate, every=every),
        folder=folder,
        observers=(*standard_observers(progress=progress, log=log), *observers),
    )
