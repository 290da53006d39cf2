"""One loss on every scale that a network returns."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uumamba.types import Logits


class DeepSupervisionLoss(nn.Module):
    r"""Weighted sum of one loss over the outputs of a deeply supervised network.

    .. math:: L = \sum_i w_i \, \ell(z_i, y_i), \qquad w_i \propto 2^{-i}, \qquad \sum_i w_i = 1

    Output 0 is the finest. Unless weights are given the coarsest of several outputs has weight 0; it is computed all
    the same, so that its parameters have gradients (of 0), which data-parallel training needs. The label is brought to
    each scale by nearest neighbour, so no class value is made up. A single tensor, as in evaluation, or a list of one
    gets the loss itself.

    Args:
        loss: called as ``loss(logits, label)`` on each scale, the finest last, so that what it remembers of its last
            call is of the finest.
        weights: one a scale, finest first; normalised to sum to 1.

    Raises:
        ValueError: weights are negative or sum to 0, or their number is not that of the outputs.

    Example:
        >>> from uumamba.losses import CrossEntropyLoss
        >>> loss = DeepSupervisionLoss(CrossEntropyLoss())
        >>> outputs = [torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 2, 2)]
        >>> loss(outputs, torch.zeros(1, 1, 8, 8, dtype=torch.long))  # ln 2, weights 2/3, 1/3 and 0
        tensor(0.6931)

    References:
        Lee et al., *Deeply-Supervised Nets*, AISTATS 2015, arXiv:1409.5185.
        Isensee et al., *nnU-Net*, Nature Methods 18, 2021 (these weights). Differs from the paper: none.
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.scale_weights = None if weights is None else _normalised(weights)

    def forward(self, logits: Logits, label: Tensor) -> Tensor:
        """Loss of one ``(batch, classes, *spatial)`` or a list, finest first, against ``(batch, 1, *spatial)``."""
        outputs = [logits] if isinstance(logits, Tensor) else list(logits)
        weights = self._weights_of(len(outputs))
        terms = [
            weight * self.loss(output, label_at(label, output.shape[2:]))
            for weight, output in reversed(list(zip(weights, outputs, strict=True)))
        ]
        return torch.stack(terms).sum()

    def _weights_of(self, scales: int) -> tuple[float, ...]:
        if scales == 1:
            return (1.0,)
        if self.scale_weights is None:
            return _normalised([0.5**scale for scale in range(scales - 1)] + [0.0])
        if len(self.scale_weights) != scales:
            raise ValueError(f"{len(self.scale_weights)} weights were given for {scales} outputs; give one an output")
        return self.scale_weights


def label_at(label: Tensor, size: Sequence[int]) -> Tensor:
    """A label ``(batch, 1, *spatial)`` at a spatial size by nearest neighbour, voxel ``floor(i * old / new)`` an axis.

    Raises:
        ValueError: the label has another number of spatial axes.

    Example:
        >>> label_at(torch.tensor([[[0, 1, 2, 3]]]), (2,))
        tensor([[[0, 2]]])
    """
    if label.ndim != len(size) + 2:
        raise ValueError(
            f"label must be (batch, 1, *spatial) with {len(size)} spatial axes as the logits, got {tuple(label.shape)}"
        )
    for axis, (old, new) in enumerate(zip(label.shape[2:], size, strict=True), start=2):
        if new != old:
            index = torch.arange(new, device=label.device) * old // new
            label = label.index_select(axis, index)
    return label


def _normalised(weights: Sequence[float]) -> tuple[float, ...]:
    total = float(sum(weights))
    if min(weights, default=0) < 0 or not total > 0:
        raise ValueError(f"weights must not be negative and must not all be 0, got {tuple(weights)}")
    return tuple(weight / total for weight in weights)
