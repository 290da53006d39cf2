"""Training in few bits: which layers round to what, and which of their scales follow the task."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import nn

from uumamba.config.base import Config

if TYPE_CHECKING:
    from uumamba.quantization import GAQAT


class GAQATConfig(Config):
    """Freezes gradients of scales, window by window; see :class:`uumamba.quantization.GAQAT`."""

    every: PositiveInt = 50
    threshold: NonNegativeFloat = 0.3
    mode: Literal["task", "smooth", "always", "never", "alternate"] = "task"

    def build(self, optimizer: Any, net: nn.Module) -> "GAQAT":
        """Attached to the optimizer, which keeps its state."""
        from uumamba.quantization import GAQAT

        return GAQAT(optimizer, net, **self.model_dump())


class QuantizationConfig(Config):
    """Weights and activations of 2 to 8 bits with learned scales; see :func:`uumamba.quantization.quantize_`.

    Activations get their first scales from ``calibration_batches`` batches of the training.
    """

    weight_bits: int | None = 4
    act_bits: int | None = 4
    first_last_bits: int | None = 8
    per_channel: bool = False
    overrides: dict[str, int | None] = Field(default_factory=dict)
    start_step: NonNegativeInt = 0
    calibration_batches: PositiveInt = 8
    gaqat: GAQATConfig | None = None

    def check(self, *, optim: Any, objective: str, batches_per_epoch: int) -> None:
        """Refuse what no part alone can see.

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
