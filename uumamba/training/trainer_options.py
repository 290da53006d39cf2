"""Options of a trainer: its steps, its device, its validation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uumamba.runtime.autocast import Precision
from uumamba.runtime.options import PositiveInt, check_options
from uumamba.runtime.ranks import ALONE, Ranks
from uumamba.types import Method


@check_options
@dataclass(frozen=True)
class StepOptions:
    """Options of an optimizer step.

    Attributes:
        ascent: scalar for the ascent step in place of the loss, computed from the objective's outputs.
        method: penalty added to each step at the original weights, such as UDIM. It is called once per
            micro-batch with the augmented ``image``, ``label`` and, if given, ``domain``. Its scalar is computed under
            the run's autocast, and its state is part of the checkpoint.
        samples_at_once: most samples in one pass; larger batches are split into micro-batches. None is no limit.
        max_skipped_in_a_row: end the run after this number of consecutive skipped steps.

    Raises:
        UsageError: a number is below 1.
    """

    ascent: Callable[[Any], Tensor] | None = None
    method: Method | None = None
    samples_at_once: PositiveInt | None = None
    max_skipped_in_a_row: PositiveInt = 25


@check_options
@dataclass(frozen=True)
class Execution:
    """Device, number format and processes of a training.

    Attributes:
        device: device of the training.
        precision: precision of autocast, entered again for every pass; ``"float16"`` needs an optimizer with a scaler.
        channels_last: store weights and images channels-last; on a CPU torch 2.13 can crash with this format.
        compiles: train through ``torch.compile``; a failure is reported and training continues without it.
        ranks: the processes that train together; a single process by default.

    Raises:
        UsageError: the precision is unknown.
    """

    device: torch.device | str = "cpu"
    precision: Precision = "float32"
    channels_last: bool = False
    compiles: bool = False
    ranks: Ranks = ALONE


@check_options
@dataclass(frozen=True)
class Validation:
    """Validation of the network between epochs.

    Attributes:
        run: ``run(net) -> {"dice": ..., ...}``, higher is better; the network is in evaluation mode.
        every: epochs between validations; the last epoch is always validated.

    Raises:
        UsageError: ``every`` is below 1.
    """

    run: Callable[[nn.Module], dict[str, float]]
    every: PositiveInt = 1

    def is_due(self, epoch: int, *, epochs: int) -> bool:
        """Return whether an epoch, from 0, ends with a validation."""
        return (epoch + 1) % self.every == 0 or epoch + 1 == epochs
