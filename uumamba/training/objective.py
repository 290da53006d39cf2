"""The plain objective: a loss of the network's output against the label."""

from torch import Tensor, nn

from uumamba.types import Batch


class SupervisedObjective(nn.Module):
    """``loss(net(batch["image"]), batch["label"])``, holding the loss so that its parameters can learn.

    Give ``objective.parameters()`` to the optimizer beside the network's, in a group with ``weight_decay=0`` and
    ``perturb=False``.

    Args:
        loss: called as ``loss(logits, label)``; logits may be a list under deep supervision.

    Example:
        >>> import torch
        >>> objective = SupervisedObjective(nn.MSELoss())
        >>> objective(nn.Identity(), {"image": torch.ones(2), "label": torch.zeros(2)})
        tensor(1.)
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, net: nn.Module, batch: Batch) -> Tensor:
        """Scalar loss of one batch."""
        value: Tensor = self.loss(net(batch["image"]), batch["label"])
        return value

    def loss_weights(self) -> dict[str, float]:
        """The learned weights of the first part of the loss that has ``weights()``; empty where none has."""
        for module in self.loss.modules():
            weights = getattr(module, "weights", None)
            if callable(weights):
                return {str(name): float(value) for name, value in weights().items()}
        return {}
