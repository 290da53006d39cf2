"""Training objectives by name: the loss, with or without self-distillation."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import nn

from uumamba.config.base import Config
from uumamba.optim import MESA
from uumamba.runtime.errors import require
from uumamba.training import SupervisedObjective


class SupervisedConfig(Config):
    """Loss without a further term."""

    name: Literal["supervised"] = "supervised"

    def build(self, loss: nn.Module, net: nn.Module, *, outputs: bool = False) -> SupervisedObjective:
        """Build the objective.

        ``outputs`` makes it return logits and label with the loss, for optimizers that need them.
        """
        return SupervisedObjective(loss, outputs=outputs)


class MESAConfig(Config):
    """Loss plus divergence from the network's moving average; see :class:`uumamba.optim.MESA`."""

    name: Literal["MESA"]
    weight: NonNegativeFloat = 0.8
    temperature: PositiveFloat = 5.0
    decay: float = Field(0.9998, ge=0, lt=1)
    start_step: NonNegativeInt = 0

    def build(self, loss: nn.Module, net: nn.Module, *, outputs: bool = False) -> MESA:
        """Build the objective with a copy of the network as teacher.

        Raises:
            UsageError: the optimizer needs logits, which MESA does not return.
        """
        require(
            not outputs,
            "name",
            got=self.name,
            expected="supervised for an optimizer with ascent or trust region",
            fix="set objective.name=supervised, or take another optimizer",
        )
        return MESA(loss, net, **self.model_dump(exclude={"name"}))


ObjectiveConfig = Annotated[SupervisedConfig | MESAConfig, Field(discriminator="name")]
