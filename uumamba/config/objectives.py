"""Training objectives of a run: the loss, with or without self-distillation."""

from typing import cast

from torch import nn

from uumamba.config.bind import Part, supply, takes
from uumamba.config.optim import describe_outputs
from uumamba.data.label_scheme import LabelScheme
from uumamba.runtime.errors import require


def build_objective(
    part: Part, loss: nn.Module, net: nn.Module, *, outputs: bool = False, labels: LabelScheme | None = None
) -> nn.Module:
    """Build the objective of a loss.

    Args:
        part: of kind ``objective``.
        loss: of logits and label.
        net: the trained network; MESA copies it.
        outputs: make the objective return logits and label with the loss, for optimizers that need them.
        labels: labels of the data set; None for classes without ignored voxels.

    Raises:
        UsageError: the optimizer needs logits, which the objective does not return.
    """
    make = part.bind()
    require(
        not outputs or takes(make, "outputs"),
        "name",
        got=part.name,
        expected="supervised for an optimizer with ascent or trust region",
        fix="set objective.name=supervised, or take another optimizer",
    )
    return cast(nn.Module, supply(make, loss=loss, net=net, outputs=outputs, **describe_outputs(labels)))
