"""Checks and types of logits and labels, shared by all losses."""

import torch
from torch import Tensor

from uumamba.runtime.errors import require


def check_inputs(logits: Tensor, label: Tensor) -> None:
    """Raise unless the label is one channel of integer classes on the grid of the logits.

    Values are not checked: on an accelerator that would wait for the device.

    Raises:
        UsageError: fewer than two classes, a label of another type than integers, or shapes that do not match.

    Example:
        >>> check_inputs(torch.zeros(2, 4, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long))
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: label: got (2, 8, 8), expected the shape (2, 1, 8, 8), as the logits have \
(2, 4, 8, 8).
    """
    shape, found = tuple(logits.shape), tuple(label.shape)
    has_classes = len(shape) > 2 and shape[1] > 1
    require(has_classes, "logits", got=shape, expected="the shape (batch, classes, *spatial) with at least 2 classes")
    is_integer = not (label.is_floating_point() or label.is_complex() or label.dtype == torch.bool)
    require(is_integer, "label", got=label.dtype, expected="integer classes, such as torch.int64")
    expected = (shape[0], 1, *shape[2:])
    require(found == expected, "label", got=found, expected=f"the shape {expected}, as the logits have {shape}")


def full_precision(logits: Tensor) -> Tensor:
    """Convert half and bfloat16 to float32: sums over a volume overflow or stall in half precision."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def own_and_valid(label: Tensor, ignore_label: int | None) -> tuple[Tensor, Tensor | None]:
    """Return each voxel's class as int64, 0 where ignored, and the mask of valid voxels; None if all are valid."""
    if ignore_label is None:
        return label.long(), None
    valid = label != ignore_label
    return label.long().masked_fill(~valid, 0), valid
