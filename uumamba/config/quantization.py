"""Quantization-aware training: bit widths, calibration and GAQAT."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import nn

from uumamba.config.base import Config
from uumamba.runtime.errors import require

if TYPE_CHECKING:
    from uumamba.quantization import GAQAT


Width = Annotated[int | None, BeforeValidator(lambda bits: None if bits == "None" else bits)]
"""Bits, or null for full precision; the string ``None`` is accepted, as YAML reads Python's word as text."""


class GAQATConfig(Config):
    """Freezing of scale gradients per window; see :class:`uumamba.quantization.GAQAT`."""

    every: PositiveInt = 50
    threshold: NonNegativeFloat = 0.3
    mode: Literal["task", "smooth", "always", "never", "alternate"] = "task"

    def find_first_effect(self, start_step: int) -> int:
        """Return the first step, counted from 1, that GAQAT can change.

        Before ``start_step`` scales have no gradient, so there is no gradient to freeze and no sign to compare.
        """
        if self.mode in ("always", "never"):
            return start_step + 1
        before = max(start_step, self.every)
        if self.mode == "alternate" and before // self.every % 2 == 0:  # this window freezes nothing
            before = (before // self.every + 1) * self.every
        if self.mode in ("task", "smooth") and self.threshold <= 1:  # the end of a window with two signs
            before = -(-(start_step + 2) // self.every) * self.every
        return before + 1


class QuantizationConfig(Config):
    """Low-bit weights and activations; see :func:`uumamba.quantization.quantize_`.

    Both have 2 to 8 bits and learned scales. Activation scales are initialised from ``calibration_batches`` training
    batches.
    """

    weight_bits: Width = 4
    act_bits: Width = 4
    first_last_bits: Width = 8
    per_channel: bool = False
    overrides: dict[str, Width] = Field(default_factory=dict)
    start_step: NonNegativeInt = 0
    calibration_batches: PositiveInt = 8
    gaqat: GAQATConfig | None = None

    def check_run(self, *, optim: Any, objective: str, batches_per_epoch: int) -> None:
        """Raise if quantization does not fit the rest of the run.

        Args:
            optim: configuration of the optimizer.
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
            self.act_bits is None or self.calibration_batches <= batches_per_epoch,
            "quantization.calibration_batches",
            got=self.calibration_batches,
            expected=f"at most training.batches_per_epoch, {batches_per_epoch}",
        )
        if self.gaqat is not None:
            found = optim.name, getattr(optim, "perturb", "all"), getattr(optim, "rho", 0.0)
            require(
                found[:2] == ("SAGM", "all") and found[2] > 0,
                "optim",
                got=f"name {found[0]}, perturb {found[1]}, rho {found[2]}",
                expected="name SAGM, perturb all and rho above 0 with quantization.gaqat",
                fix="set optim.name=SAGM, or quantization.gaqat=null",
            )

    def check_takes_effect(self, steps: int) -> None:
        """Raise if ``start_step`` or ``gaqat.every`` exceeds the number of training steps.

        Raises:
            UsageError: the training would end before the first quantized step, or before the first frozen scale.
        """
        require(
            self.start_step < steps,
            "start_step",
            got=self.start_step,
            expected=f"a number below the {steps} steps of the training",
            fix="lower quantization.start_step, or train longer",
        )
        first = 0 if self.gaqat is None else self.gaqat.find_first_effect(self.start_step)
        require(
            first <= steps,
            "gaqat.every",
            got=self.gaqat and self.gaqat.every,
            expected=f"a first frozen step, now {first}, within the {steps} steps of the training",
            fix="lower quantization.start_step or quantization.gaqat.every, or train longer",
        )

    def build(self, net: nn.Module) -> nn.Module:
        """Quantize the network in place and return it."""
        from uumamba.quantization import quantize_

        return quantize_(net, **self.model_dump(exclude={"calibration_batches", "gaqat"}))

    def attach(self, optimizer: Any, net: nn.Module) -> "GAQAT | None":
        """Attach GAQAT and the step counter of ``start_step`` to the optimizer.

        Raises:
            UsageError: GAQAT with several ranks, whose local gradients would freeze different scales.
        """
        from uumamba.quantization import GAQAT, count_steps

        if self.start_step:
            count_steps(net, optimizer)
        return None if self.gaqat is None else GAQAT(optimizer, net, **self.gaqat.model_dump())
