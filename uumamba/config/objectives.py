"""Training objectives by name: the loss alone, or with self-distillation."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import nn

from uumamba.config.base import Config
from uumamba.runtime.errors import require

if TYPE_CHECKING:
    from uumamba.optim import MESA
    from uumamba.training import SupervisedObjective


class SupervisedConfig(Config):
    """The loss alone."""

    name: Literal["supervised"] = "supervised"

    def build(self, loss: nn.Module, net: nn.Module, *, outputs: bool = False) -> "SupervisedObjective":
        """Build the objective; with ``outputs`` it also returns logits and label, for optimizers that need them."""
        from uumamba.training import SupervisedObjective

        return SupervisedObjective(loss, outputs=outputs)


class MESAConfig(Config):
    """The loss plus the divergence from the network's moving average; see :class:`uumamba.optim.MESA`."""

    name: Literal["MESA"]
    weight: NonNegativeFloat = 0.8
    temperature: PositiveFloat = 5.0
    decay: float = Field(0.9998, ge=0, lt=1)
    start_step: NonNegativeInt = 0

    def build(self, loss: nn.Module, net: nn.Module, *, outputs: bool = False) -> "MESA":
        """Build the objective with a copy of the network as teacher.

        Raises:
            UsageError: the optimizer needs logits, which MESA does not return.
        """
        from uumamba.optim import MESA

        require(
            not outputs,
            "name",
            got=self.name,
            expected="supervised, as the optimizer needs logits and MESA returns none",
            fix="set objective.name=supervised, or take an optimizer without ascent or trust region",
        )
        return MESA(loss, net, **self.model_dump(exclude={"name"}))


ObjectiveConfig = Annotated[SupervisedConfig | MESAConfig, Field(discriminator="name")]
