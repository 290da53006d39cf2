"""Masks of overlapping regions, from a label of classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uumamba.losses.inputs import check_classes, check_shapes, read_valid, upcast_half
from uumamba.runtime.errors import require

Membership = Tensor | Sequence[Sequence[bool]]
"""``(classes, regions)``: whether a class belongs to a region; class 0, background, usually belongs to none."""


class RegionTerm(nn.Module):
    """Base class of losses of regions, with the table of their classes.

    Args:
        membership: ``(classes, regions)``; see :data:`Membership`.
        ignore_label: label of voxels that are left out of all sums; None if there are none.

    Raises:
        UsageError: the table is not rectangular, has no region, or a region has no class.

    Example:
        >>> term = RegionTerm([[False, False], [True, False], [True, True]])  # whole of classes 1 and 2, core of 2
        >>> logits, masks, valid = term.read(torch.zeros(1, 2, 3), torch.tensor([[[0, 1, 2]]]))
        >>> masks.long()
        tensor([[[0, 1, 1],
                 [0, 0, 1]]])
    """

    membership: Tensor

    def __init__(self, membership: Membership, *, ignore_label: int | None = None) -> None:
        super().__init__()
        rows = membership.tolist() if isinstance(membership, Tensor) else [list(row) for row in membership]
        require(
            len(rows) > 1
            and len({len(row) for row in rows}) == 1
            and all(map(any, zip(*rows, strict=True)))
            and rows[0],
            "membership",
            got=rows,
            expected="a table (classes, regions) of at least 2 classes, with a class in each region",
        )
        # The table follows from the data set, so it is not stored.
        self.register_buffer("membership", torch.tensor(rows, dtype=torch.bool), persistent=False)
        self.ignore_label = ignore_label

    def read(self, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Check logits and label; return logits, masks and valid voxels.

        Logits are in at least float32. Where a voxel is ignored, its logits are 0 and it is in no mask.

        Args:
            logits: ``(batch, regions, *spatial)``.
            label: integer classes, ``(batch, 1, *spatial)``.

        Returns:
            Logits, masks (bool) of their shape, and the mask of valid voxels ``(batch, 1, *spatial)``, None without
            ``ignore_label``.

        Raises:
            UsageError: the number of logits is not that of the regions, the label is not of an integer type, the shapes
                do not match, or a value is neither a class nor ``ignore_label``.
        """
        classes, regions = self.membership.shape
        check_shapes(logits, label, least=1)
        require(
            logits.shape[1] == regions,
            "logits",
            got=tuple(logits.shape),
            expected=f"the shape (batch, {regions}, *spatial), one output per region",
        )
        own_class, valid = read_valid(label, self.ignore_label)
        if own_class.numel():
            check_classes(own_class, classes, self.ignore_label)
        masks = self.membership[own_class[:, 0]].movedim(-1, 1)
        logits = upcast_half(logits)
        if valid is None:
            return logits, masks, None
        return logits.masked_fill(~valid, 0), masks & valid, valid


def count_voxels(masks: Tensor, valid: Tensor | None) -> Tensor:
    """Count the voxels inside and outside of each mask.

    Masks are ``(batch, regions, *spatial)``. Ignored voxels are not counted. The result is int64 ``(2, batch,
    regions)``.

    Example:
        >>> count_voxels(torch.tensor([[[True, False, False]]]), torch.tensor([[[True, True, False]]]))[:, 0, 0]
        tensor([1, 1])
    """
    inside = masks.flatten(2).sum(2)
    total = masks[0, 0].numel() if valid is None else valid.flatten(2).sum(2)
    return torch.stack([inside, total - inside])
