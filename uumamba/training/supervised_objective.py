"""Supervised objective: loss between network output and label."""

from torch import Tensor, nn

from uumamba.runtime.network import read_loss_weights
from uumamba.types import Batch, Logits


class SupervisedObjective(nn.Module):
    """Supervised loss ``loss(net(batch["image"]), batch["label"])``.

    A module, so that parameters of the loss can be trained. Give ``objective.parameters()`` to the optimizer with the
    network's parameters, in a group with ``weight_decay=0`` and
    ``perturb=False``.

    Args:
        loss: called as ``loss(logits, label)``; logits may be a list under deep supervision.
        outputs: return ``(loss, (logits, label))``, for an optimizer with an ascent loss or a trust region.

    Example:
        >>> import torch
        >>> objective = SupervisedObjective(nn.MSELoss())
        >>> objective(nn.Identity(), {"image": torch.ones(2), "label": torch.zeros(2)})
        tensor(1.)
    """

    def __init__(self, loss: nn.Module, *, outputs: bool = False) -> None:
        super().__init__()
        self.loss = loss
        self.outputs = outputs

    def forward(self, net: nn.Module, batch: Batch) -> Tensor | tuple[Tensor, tuple[Logits, Tensor]]:
        """Return the loss of a batch; with ``outputs`` also logits and label."""
        logits, label = net(batch["image"]), batch["label"]
        value: Tensor = self.loss(logits, label)
        return (value, (logits, label)) if self.outputs else value

    def loss_weights(self) -> dict[str, float]:
        """Return the learned weights of the loss terms; empty without any."""
        return read_loss_weights(self.loss)
