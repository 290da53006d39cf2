"""Loss of patches relative to unseen ones, by which they are recognised."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uumamba.runtime.network import evaluating
from uumamba.types import Batch
from uumamba.unlearning import per_sample_cross_entropy, predict_batch
from uumamba.unlearning.balanced_loss import class_means

LEAST_LOSS = 1e-7


@dataclass(frozen=True)
class RelativeClassLoss:
    r"""Loss of a patch by classes, relative to unseen patches.

    At most 1.

    .. math:: r_i = \frac{1}{|C_i|} \sum_{c \in C_i} \min\left(\frac{L_{ic}}{\mathrm{median}\, L_{\cdot c}}, 1\right)

    with :math:`L_{ic}` the mean cross entropy of the voxels of class c. Each class has a median of its own and counts
    up to it, so that neither the background hides a small structure, nor a structure has to make up for the background.

    Attributes:
        medians: median of the unseen patches' losses, for each class; infinite for a class that none of them has, which
            then does not count.
        ignore_label: label of voxels that do not count.
    """

    medians: Sequence[float]
    ignore_label: int | None

    def __call__(self, logits: Any, label: Tensor) -> Tensor:
        """Return the value of each patch, ``(batch,)``; 1 without a class."""
        means, present = class_means(logits, label, ignore_label=self.ignore_label)
        medians = means.new_tensor(list(self.medians))
        counts = present & medians.isfinite()
        relative = (means / medians).clamp(max=1).where(counts, 0.0)
        return torch.where(counts.any(1), relative.sum(1) / counts.sum(1).clamp(min=1), 1.0)


@dataclass(frozen=True)
class RelativeVoxelLoss:
    r"""Loss of a patch by voxels, relative to unseen patches.

    At most 1.

    .. math:: r_i = \min\left(\frac{L_i}{\mathrm{median}\, L}, 1\right)

    with :math:`L_i` the mean cross entropy of all voxels, most of which are background.

    Attributes:
        median: median of the unseen patches' losses.
        ignore_label: label of voxels that do not count.
    """

    median: float
    ignore_label: int | None

    def __call__(self, logits: Any, label: Tensor) -> Tensor:
        """Return the value of each patch, ``(batch,)``."""
        losses = per_sample_cross_entropy(logits, label, ignore_label=self.ignore_label)
        return (losses / self.median).clamp(max=1)


@dataclass(frozen=True)
class RelativeLosses:
    """Both losses of a patch, relative to unseen ones.

    They are named as the losses of a whole case.
    """

    loss: RelativeClassLoss
    voxel_loss: RelativeVoxelLoss


def measure_unseen(net: nn.Module, unseen: Iterable[Batch], *, ignore_label: int | None) -> RelativeLosses:
    """Measure the medians on batches of unseen patches."""
    found = []
    with evaluating(net):
        for batch in unseen:
            logits, label = predict_batch(net, batch)
            losses = per_sample_cross_entropy(logits, label, ignore_label=ignore_label)
            found.append((*class_means(logits, label, ignore_label=ignore_label), losses))
    means, present, losses = (torch.cat(each) for each in zip(*found, strict=True))
    medians = tuple(
        max(float(of_class[known].median()), LEAST_LOSS) if known.any() else float("inf")
        for of_class, known in zip(means.T, present.T, strict=True)
    )
    median = max(float(losses.median()), LEAST_LOSS)
    return RelativeLosses(RelativeClassLoss(medians, ignore_label), RelativeVoxelLoss(median, ignore_label))
