"""Sum of losses, and the base class of all compound losses."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from uumamba.runtime.errors import require


class CompoundLoss(nn.Module):
    """Base class of losses with several named terms.

    Attributes:
        losses: the losses by name.
        last_terms: detached value of each term in the last call, on the device of the loss.

    Args:
        losses: named losses, each called as ``loss(logits, label)``.

    Raises:
        UsageError: there are no losses.

    Example:
        >>> from uumamba.losses import CrossEntropyLoss
        >>> loss = CompoundLoss({"distribution": CrossEntropyLoss()})
        >>> _ = loss.compute_terms(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.long))
        >>> loss.last_terms
        {'distribution': tensor(0.6931)}
    """

    def __init__(self, losses: Mapping[str, nn.Module]) -> None:
        super().__init__()
        require(losses, "losses", got=losses, expected='at least one named loss, such as {"region": SoftDiceLoss()}')
        self.losses = nn.ModuleDict(dict(losses))
        self.last_terms: dict[str, Tensor] = {}

    def compute_terms(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the value of every term, ``(terms,)`` in at least float32.

        The values are also stored in ``last_terms``, without waiting for the device.
        """
        values = torch.stack([loss(logits, label) for loss in self.losses.values()])
        self.last_terms = dict(zip(self.losses, values.detach().unbind(), strict=True))
        return values


class SummedLoss(CompoundLoss):
    """Unweighted sum of named losses, such as nnU-Net's Dice + cross entropy.

    After a call ``last_terms`` contains the detached value of each term, on the device of the loss. Give
    ``ignore_label`` to each term; a term without it raises for an ignored label that is no class.

    Args:
        losses: named losses, each called as ``loss(logits, label)``.

    Raises:
        UsageError: there are no losses.

    Example:
        >>> from uumamba.losses import CrossEntropyLoss, SoftDiceLoss
        >>> loss = SummedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()})
        >>> loss(torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.long)).shape
        torch.Size([])
    """

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, classes, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        return self.compute_terms(logits, label).sum()
