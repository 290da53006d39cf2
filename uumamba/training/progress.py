"""How far a run is: numbers that stand in the checkpoint, and the loss summed on the device."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

CLOCK_READINGS = ("seconds", "waited_seconds", "used_seconds", "longest_seconds")
"""What no two runs share: everything else of a run's progress is the same when it is repeated."""


@dataclass
class Progress:
    """How far a run is, at any step.

    Attributes:
        epochs_done: whole epochs, validation included.
        steps_in_epoch: steps of the epoch under way.
        steps_done: steps of the whole run.
        skipped_steps: steps of the whole run that were skipped because something was not finite.
        skipped_in_a_row: the latest of them without a good one between.
        best_dice: the best validation's; None before the first.
        lr: of the first parameter group in the latest step.
        loss_sum: over the finite losses of the epoch under way.
        loss_count: how many these are.
        seconds: spent on the epoch under way.
        samples_at_once: how many fit into memory together; None as long as whole batches do.
        waited_seconds: those of them for which a step waited for its batch.
        used_seconds: of the run's budget, up to the latest step or epoch.
        longest_seconds: that a validation, and that a checkpoint took.
        is_validated: whether the latest whole epoch was.
    """

    epochs_done: int = 0
    steps_in_epoch: int = 0
    steps_done: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    best_dice: float | None = None
    lr: float | None = None
    loss_sum: float = 0.0
    loss_count: float = 0.0
    seconds: float = 0.0
    samples_at_once: int | None = None
    waited_seconds: float = 0.0
    used_seconds: float = 0.0
    longest_seconds: dict[str, float] = field(default_factory=dict)
    is_validated: bool = False


class EpochLoss:
    """Mean of the finite losses of an epoch, summed where they are, so that no step waits for the device.

    Example:
        >>> mean = EpochLoss(torch.device("cpu"))
        >>> for loss in (1.0, float("nan"), 2.0):
        ...     mean.add(torch.tensor(loss))
        >>> mean.read()
        (3.0, 2.0)
    """

    def __init__(self, device: torch.device, loss_sum: float = 0.0, loss_count: float = 0.0) -> None:
        self._sums = torch.tensor([loss_sum, loss_count], dtype=torch.float32, device=device)

    def add(self, loss: Tensor) -> None:
        """Count one step's loss."""
        loss = loss.reshape(())
        finite = loss.isfinite()
        self._sums += torch.stack([torch.where(finite, loss, 0.0), finite]).to(self._sums)

    def read(self) -> tuple[float, float]:
        """Sum and count; this waits for the device."""
        loss_sum, loss_count = self._sums.tolist()
        return loss_sum, loss_count
