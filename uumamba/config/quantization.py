"""Training in few bits: which layers round to what, and which of their scales follow the task."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import nn

from uumamba.config.base import Config

if TYPE_CHECKING:
    from uumamba.quantization import GAQAT


Width = Annotated[int | None, BeforeValidator(lambda bits: None if bits == "None" else bits)]
"""``None`` is a word to YAML, and the cure that messages give in Python."""


class GAQATConfig(Config):
    """Freezes gradients of scales, window by window; see :class:`uumamba.quantization.GAQAT`."""

    every: PositiveInt = 50
    threshold: NonNegativeFloat = 0.3
    mode: Literal["task", "smooth", "always", "never", "alternate"] = "task"

    def first_effect(self, start_step: int) -> int:
        """The earliest step, counted from 1, that can differ from one without it, where weights wait so many.

        As long as weights wait, their scales have no gradient: none to lose, and no sign to compare with another.
        """
        if self.mode in ("always", "never"):
            return start_step + 1
        before = max(start_step, self.every)
        if self.mode == "alternate" and before // self.every % 2 == 0:  # in a window that freezes nothing
            before = (before // self.every + 1) * self.every
        if self.mode in ("task", "smooth") and self.threshold <= 1:  # at the end of a window with two signs
            before = -(-(start_step + 2) // self.every) * self.every
        return before + 1

    def build(self, optimizer: Any, net: nn.Module) -> "GAQAT":
        """Attached to the optimizer, which keeps its state."""
        from uumamba.quantization import GAQAT

        return GAQAT(optimizer, net, **self.model_dump())


class QuantizationConfig(Config):
    """Weights and activations of 2 to 8 bits with learned scales; see :func:`uumamba.quantization.quantize_`.

    Activations get their first scales from ``calibration_batches`` batches of the training.
    """

    weight_bits: Width = 4
    act_bits: Width = 4
    first_last_bits: Width = 8
    per_channel: bool = False
    overrides: dict[str, Width] = Field(default_factory=dict)
    start_step: NonNegativeInt = 0
    calibration_batches: PositiveInt = 8
    gaqat: GAQATConfig | None = None

    def check(self, *, optim: Any, objective: str, batches_per_epoch: int) -> None:
        """Refuse what no part alone can see.

        Args:
            optim: the run's optimizer.
            objective: its name.
            batches_per_epoch: each is one step.

        Raises:
            ValueError: the message says what does not go together, and what to set.
        """
        if objective == "MESA":
            raise ValueError(
                "MESA's teacher is an average of all that the network holds, and bit widths and waiting steps have "
                "none; set objective.name=supervised, and training.ema_decay for an average to predict with"
            )
        if self.calibration_batches > batches_per_epoch and self.act_bits is not None:
            raise ValueError(
                f"calibration_batches is {self.calibration_batches} and training.batches_per_epoch "
                f"{batches_per_epoch}, and they are the first epoch's; set calibration_batches lower"
            )
        if self.gaqat is None:
            return
        found = {"name": optim.name, "perturb": getattr(optim, "perturb", "all"), "rho": getattr(optim, "rho", 0.0)}
        if found["name"] != "SAGM" or found["perturb"] != "all" or found["rho"] == 0:
            raise ValueError(
                "gaqat tells the task's gradient of each scale from that of a climbed point, so optim needs name SAGM, "
                f"perturb all and rho above 0, found {', '.join(f'{key} {value}' for key, value in found.items())}; "
                "set optim.name=SAGM and leave perturb and rho out, or set gaqat to null"
            )

    def check_reached(self, steps: int) -> None:
        """Refuse rounding and freezing that would begin after the last of so many steps, as without them.

        Raises:
            ValueError: the message says what is not reached, and what to set.
        """
        length = f"training.epochs x training.batches_per_epoch {steps} steps"
        if self.start_step >= steps:
            raise ValueError(
                f"start_step is {self.start_step} and {length}, so nothing is trained with rounded weights; set "
                "start_step lower or train longer"
            )
        if self.gaqat is None or (first := self.gaqat.first_effect(self.start_step)) <= steps:
            return
        if self.gaqat.every >= steps:
            raise ValueError(
                f"gaqat.every is {self.gaqat.every} and {length}, so no scale is frozen, which begins after a window "
                "of so many; set gaqat.every lower or train longer"
            )
        raise ValueError(
            f"start_step is {self.start_step}, gaqat.every {self.gaqat.every} and {length}, so no scale of a rounded "
            f"weight is frozen, which can begin at step {first}; set start_step or gaqat.every lower or train longer"
        )

    def build(self, net: nn.Module) -> nn.Module:
        """The same network, quantised in place."""
        from uumamba.quantization import quantize_

        return quantize_(net, **self.model_dump(exclude={"calibration_batches", "gaqat"}))

    def attach(self, optimizer: Any, net: nn.Module) -> "GAQAT | None":
        """Let the optimizer's steps count for weights that wait, and freeze scales where that is asked for.

        Raises:
            UsageError: several ranks would freeze by gradients of their own.
        """
        from uumamba.quantization import count_steps

        if self.start_step:
            count_steps(net, optimizer)
        return None if self.gaqat is None else self.gaqat.build(optimizer, net)
