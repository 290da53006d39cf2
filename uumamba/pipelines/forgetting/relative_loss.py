"""Loss of patches relative to unseen ones, by which they are recognised."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from uumamba.types import Batch
from uumamba.unlearning import collect_losses, per_sample_balanced_cross_entropy, per_sample_cross_entropy

LEAST_LOSS = 1e-7


@dataclass(frozen=True)
class RelativeLoss:
    r"""Lower of a patch's two losses relative to unseen patches.

    .. math:: r_i = \min\left(\frac{L^\mathrm{balanced}_i}{\mathrm{median}\, L^\mathrm{balanced}_\mathrm{unseen}},
        \frac{L^\mathrm{voxel}_i}{\mathrm{median}\, L^\mathrm{voxel}_\mathrm{unseen}}\right)

    A patch with a value below 1 is recognised by one of the losses. A loss of class means alone would leave that of all
    voxels, which the background dominates, as it is.

    Attributes:
        balanced: median of the unseen patches' mean over classes of their voxels' mean cross entropy.
        voxel: median of the unseen patches' mean cross entropy.
        ignore_label: label of voxels that do not count.
    """

    balanced: float
    voxel: float
    ignore_label: int | None

    def __call__(self, logits: Any, label: Tensor) -> Tensor:
        """Return the value of each patch, ``(batch,)``."""
        balanced = per_sample_balanced_cross_entropy(logits, label, ignore_label=self.ignore_label)
        voxel = per_sample_cross_entropy(logits, label, ignore_label=self.ignore_label)
        return torch.minimum(balanced / self.balanced, voxel / self.voxel)


def measure_unseen(net: nn.Module, unseen: Iterable[Batch], *, ignore_label: int | None) -> RelativeLoss:
    """Measure the medians on batches of unseen patches."""
    batches = list(unseen)

    def median(per_sample_loss: Any) -> float:
        losses = collect_losses(net, batches, per_sample_loss=partial(per_sample_loss, ignore_label=ignore_label))
        return max(float(losses.median()), LEAST_LOSS)

    return RelativeLoss(median(per_sample_balanced_cross_entropy), median(per_sample_cross_entropy), ignore_label)
