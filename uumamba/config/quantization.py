"""Quantization-aware training of a run: bit widths, calibration and GAQAT."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from uumamba.config.bind import Part
from uumamba.runtime.errors import require
from uumamba.runtime.options import PositiveInt, check_options

if TYPE_CHECKING:
    from uumamba.quantization import GAQAT


@check_options
@dataclass(frozen=True, kw_only=True)
class QuantizationOptions:
    """Options of a run's quantization in addition to those of ``quantize_``.

    Args:
        calibration_batches: training batches for the initial scales of activations.
        gaqat: freezing of scale gradients; None for none.
    """

    calibration_batches: PositiveInt = 8
    gaqat: Any = None


def check_run(part: Part, *, optim: Part, objective: str, batches_per_epoch: int) -> None:
    """Raise if quantization does not fit the rest of the run.

    Args:
        part: of kind ``quantization``.
        optim: the optimizer.
        objective: name of the objective.
        batches_per_epoch: optimizer steps of an epoch.

    Raises:
        UsageError: the objective is MESA, whose averaged teacher would average bit widths; calibration needs more
            batches than an epoch has; or GAQAT has another optimizer than SAGM.
    """
    require(
        objective != "MESA",
        "objective.name",
        got=objective,
        expected="supervised with quantization",
        fix="set objective.name=supervised, and training.ema_decay for averaged weights",
    )
    require(
        part.act_bits is None or part.calibration_batches <= batches_per_epoch,
        "quantization.calibration_batches",
        got=part.calibration_batches,
        expected=f"at most training.batches_per_epoch, {batches_per_epoch}",
    )
    if part.gaqat is not None:
        found = optim.name, optim.options.get("perturb", "all"), optim.options.get("rho", 0.0)
        require(
            found[:2] == ("SAGM", "all") and found[2] > 0,
            "optim",
            got=f"name {found[0]}, perturb {found[1]}, rho {found[2]}",
            expected="name SAGM, perturb all and rho above 0 with quantization.gaqat",
            fix="set optim.name=SAGM, or quantization.gaqat=null",
        )


def check_takes_effect(part: Part, steps: int) -> None:
    """Raise if ``start_step`` or ``gaqat.every`` exceeds the number of training steps.

    Raises:
        UsageError: the training would end before the first quantized step, or before the first frozen scale.
    """
    from uumamba.quantization import GAQAT

    require(
        part.start_step < steps,
        "start_step",
        got=part.start_step,
        expected=f"a number below the {steps} steps of the training",
        fix="lower quantization.start_step, or train longer",
    )
    first = 0 if part.gaqat is None else GAQAT.find_first_effect(part.gaqat.options, part.start_step)
    require(
        first <= steps,
        "gaqat.every",
        got=part.gaqat and part.gaqat.every,
        expected=f"a first frozen step, now {first}, within the {steps} steps of the training",
        fix="lower quantization.start_step or quantization.gaqat.every, or train longer",
    )


def check_ranks(part: Part, optim: Part, ranks: int) -> None:
    """Raise if ranks would freeze different scales, those of their own gradients."""
    used = optim.options.get("perturbation")  # Plain has none
    require(
        ranks == 1 or part.gaqat is None or used == "global",
        "optim.perturbation",
        got=used,
        expected=f"global with quantization.gaqat on {ranks} ranks",
        fix="set optim.perturbation=global",
    )


def calibrate_on_noise(part: Part, net: nn.Module, noise: Tensor) -> None:
    """Quantize a network, with scales of activations from noise."""
    from uumamba.quantization import calibrate

    part.bind()(net)
    if part.act_bits is not None:
        calibrate(net, [noise])


def attach_gaqat(part: Part, optimizer: Any, net: nn.Module) -> "GAQAT | None":
    """Attach GAQAT and the step counter of ``start_step`` to the optimizer."""
    from uumamba.quantization import count_steps

    if part.start_step:
        count_steps(net, optimizer)
    return None if part.gaqat is None else cast("GAQAT", part.gaqat.bind()(optimizer, net))
