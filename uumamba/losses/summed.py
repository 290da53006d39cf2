"""Sum of losses, and the base class of all compound losses."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from uumamba.runtime.errors import require

Term = nn.Module | Callable[[Tensor, Tensor], Tensor]
"""Loss called as ``loss(logits, label)``."""


class CompoundLoss(nn.Module):
    """Base class of losses with several named terms.

    Attributes:
        losses: the losses by name.
        last_terms: detached value of each term in the last call, on the device of the loss.

    Args:
        losses: named losses, modules or functions, each called as ``loss(logits, label)``.

    Raises:
        UsageError: there are no losses, or they have no names.

    Example:
        >>> from uumamba.losses import CrossEntropyLoss
        >>> loss = CompoundLoss({"distribution": CrossEntropyLoss()})
        >>> _ = loss.compute_terms(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.long))
        >>> loss.last_terms
        {'distribution': tensor(0.6931)}
    """

    def __init__(self, losses: Mapping[str, Term]) -> None:
        super().__init__()
        expected = 'at least one named loss, such as {"region": SoftDiceLoss()}'
        require(isinstance(losses, Mapping), "losses", got=type(losses).__name__, expected=expected)
        require(losses, "losses", got=losses, expected=expected)
        for name, loss in losses.items():
            require(
                callable(loss) and not isinstance(loss, type),
                f"losses: {name}",
                got=loss.__name__ if isinstance(loss, type) else type(loss).__name__,
                expected="a module or a function",
                fix="make an instance first" if isinstance(loss, type) else "write the loss, not its value",
            )
        self.losses = nn.ModuleDict(
            {name: loss if isinstance(loss, nn.Module) else _Function(loss) for name, loss in losses.items()}
        )
        self.last_terms: dict[str, Tensor] = {}

    def compute_terms(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the value of every term, ``(terms,)`` in at least float32.

        The values are also stored in ``last_terms``, without waiting for the device.
        """
        values = torch.stack([loss(logits, label) for loss in self.losses.values()])
        self.last_terms = dict(zip(self.losses, values.detach().unbind(), strict=True))
        return values


class _Function(nn.Module):
    """Function as a module without parameters."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return self.function(logits, label)


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
