"""Domain-generalization methods of a run, added to each training step."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import nn

from uumamba.config.bind import Part
from uumamba.config.training import TrainingConfig
from uumamba.runtime.errors import require
from uumamba.runtime.options import BelowOne, check_options
from uumamba.runtime.seeds import key_to_seed

if TYPE_CHECKING:
    from uumamba.domain_generalization import UDIM


@check_options
@dataclass(frozen=True, kw_only=True)
class PenaltyOptions:
    """Options of a run's method in addition to its constructor's.

    Args:
        warmup_fraction: share of the run's steps without penalty, at the start.
    """

    warmup_fraction: BelowOne = 0.2


def build_penalty(
    part: Part,
    net: nn.Module,
    loss: nn.Module,
    *,
    optim: Part,
    schedule: Part,
    training: TrainingConfig,
    seed: int,
    rank: int = 0,
    ignore_label: int | None = None,
) -> "UDIM":
    """Build the method for this network.

    Args:
        part: of kind ``domain_generalization``.
        net: the trained network.
        loss: the run's loss, with its current learned weights.
        optim: optimizer with the default of ``rho``.
        schedule: its name; the number of steps of a ``budget`` is unknown.
        training: numbers of epochs and of batches per epoch, which give the length of the warm-up.
        seed: the run's seed.
        rank: rank of this process; ranks draw different directions.
        ignore_label: label of voxels to leave out.

    Raises:
        UsageError: the warm-up is a share of a budget, whose number of steps is unknown.
    """
    require(
        not part.warmup_fraction or schedule.name != "budget",
        "warmup_fraction",
        got=part.warmup_fraction,
        expected="0 with schedule.name budget",
        fix="set domain_generalization.warmup_fraction to 0, or schedule.name to poly, cosine or constant",
    )
    made = part.bind()(
        net,
        loss,
        rho=optim.options.get("rho", 0.0) if part.rho is None else part.rho,
        warmup_steps=round(part.warmup_fraction * training.epochs * training.batches_per_epoch),
        seed=seed if rank == 0 else key_to_seed(seed, "rank", rank),
        ignore_label=ignore_label,
    )
    return cast("UDIM", made)
