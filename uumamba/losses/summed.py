"""Sum of losses, and the named terms of all compound losses."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from uumamba.runtime.errors import require


class NamedTerms(nn.Module):
    """Losses by name, with the last value of each for logging, without waiting for the device.

    Args:
        losses: named losses, each called as ``loss(logits, label)``.

    Raises:
        UsageError: there are none.

    Example:
        >>> from uumamba.losses import CrossEntropyLoss
        >>> terms = NamedTerms({"distribution": CrossEntropyLoss()})
        >>> _ = terms(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.long))
        >>> terms.last
        {'distribution': tensor(0.6931)}
    """

    def __init__(self, losses: Mapping[str, nn.Module]) -> None:
        super().__init__()
        require(losses, "losses", got=losses, expected='at least one named loss, such as {"region": SoftDiceLoss()}')
        self.losses = nn.ModuleDict(dict(losses))
        self.last: dict[str, Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the given order."""
        return tuple(self.losses)

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the value of every term, in at least float32, ``(terms,)``."""
        values = torch.stack([loss(logits, label) for loss in self.losses.values()])
        self.last = dict(zip(self.names, values.detach().unbind(), strict=True))
        return values


class SummedLoss(nn.Module):
    """Unweighted sum of named losses, such as nnU-Net's Dice + cross entropy.

    After a call ``last_terms`` holds the detached value of each term, still on its device.

    Args:
        losses: named losses, each called as ``loss(logits, label)``.

    Raises:
        UsageError: there are none.

    Example:
        >>> from uumamba.losses import CrossEntropyLoss, SoftDiceLoss
        >>> loss = SummedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()})
        >>> loss(torch.zeros(2, 4, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.long)).shape
        torch.Size([])
    """

    def __init__(self, losses: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.terms = NamedTerms(losses)

    @property
    def last_terms(self) -> dict[str, Tensor]:
        """Detached value of each term in the last call, on the device of the loss."""
        return self.terms.last

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of logits ``(batch, classes, *spatial)`` against a label ``(batch, 1, *spatial)``."""
        total: Tensor = self.terms(logits, label).sum()
        return total
