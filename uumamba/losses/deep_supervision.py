"""Deep supervision: one loss at every scale of a network's outputs."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uumamba.losses.summed import Term
from uumamba.runtime.errors import require
from uumamba.runtime.options import check_options
from uumamba.types import Logits


class DeepSupervisionLoss(nn.Module):
    r"""Weighted sum of one loss over outputs of several scales.

    .. math:: L = \sum_i w_i \, \ell(z_i, y_i), \qquad w_i \propto 2^{-i}, \qquad \sum_i w_i = 1

    Output 0 is the finest. By default the coarsest of several outputs has weight 0; its loss is still computed, because
    data-parallel training needs gradients (of 0) for its parameters. Labels are downsampled by nearest neighbour. For a
    single tensor, as in evaluation, or a list of one tensor the result is the loss itself. Give ``ignore_label`` to the
    loss inside.

    Args:
        loss: called as ``loss(logits, label)`` at each scale, the finest last, so that its ``last_terms`` belong to
            the finest.
        weights: one weight per scale, finest first; they are normalised to the sum 1.

    Raises:
        UsageError: weights are negative or all 0, the numbers of weights and outputs differ, or the label is coarser
            than the finest output.

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

    @check_options
    def __init__(self, loss: Term, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.loss = loss
        self.scale_weights = None if weights is None else _normalise(weights)

    def forward(self, logits: Logits, label: Tensor) -> Tensor:
        """Return the loss of one output or a list, finest first.

        Outputs are ``(batch, classes, *spatial)``, the label is ``(batch, 1, *spatial)``.
        """
        outputs = [logits] if isinstance(logits, Tensor) else list(logits)
        weights = self._choose_weights(len(outputs))
        found, finest = tuple(label.shape[2:]), tuple(outputs[0].shape[2:])
        require(
            all(own >= needed for own, needed in zip(found, finest, strict=False)),  # else the label would be upsampled
            "label",
            got=tuple(label.shape),
            expected=f"the shape (batch, 1, *{finest}), the grid of the finest output",
            fix="give the label in full resolution",
        )
        terms = [
            weight * self.loss(output, resize_label(label, output.shape[2:]))
            for weight, output in reversed(list(zip(weights, outputs, strict=True)))
        ]
        return torch.stack(terms).sum()

    def _choose_weights(self, scales: int) -> tuple[float, ...]:
        if scales == 1:
            return (1.0,)
        if self.scale_weights is None:
            return _normalise([0.5**scale for scale in range(scales - 1)] + [0.0])
        require(
            len(self.scale_weights) == scales,
            "weights",
            got=self.scale_weights,
            expected=f"{scales} numbers, one per output",
        )
        return self.scale_weights


def resize_label(label: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a label ``(batch, 1, *spatial)`` by nearest neighbour.

    Voxel i along an axis is the old voxel ``floor(i * old / new)``.

    Raises:
        UsageError: label and size have different numbers of spatial axes.

    Example:
        >>> resize_label(torch.tensor([[[0, 1, 2, 3]]]), (2,))
        tensor([[[0, 2]]])
    """
    shape = tuple(label.shape)
    require(len(shape) == len(size) + 2, "label", got=shape, expected=f"the shape (batch, 1, {len(size)} spatial axes)")
    for axis, (old, new) in enumerate(zip(label.shape[2:], size, strict=True), start=2):
        if new != old:
            index = torch.arange(new, device=label.device) * old // new
            label = label.index_select(axis, index)
    return label


def _normalise(weights: Sequence[float]) -> tuple[float, ...]:
    total = float(sum(weights))
    require(
        min(weights, default=0) >= 0 and total > 0,
        "weights",
        got=tuple(weights),
        expected="numbers of at least 0, not all 0",
    )
    return tuple(weight / total for weight in weights)
