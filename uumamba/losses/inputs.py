"""Checks and conversions of logits and labels, shared by all losses."""

import torch
from torch import Tensor

from uumamba.runtime.errors import require


def check_inputs(logits: Tensor, label: Tensor) -> None:
    """Validate shapes and types of logits and label.

    The label has one channel of integer classes on the grid of the logits. Its values are not checked, because on an
    accelerator the check would wait for the device.

    Raises:
        UsageError: there are fewer than two classes, the label is not of an integer type, or the shapes do not match.

    Example:
        >>> check_inputs(torch.zeros(2, 4, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long))
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: label: got (2, 8, 8), expected the shape (2, 1, 8, 8) for \
logits of (2, 4, 8, 8).
    """
    shape, found = tuple(logits.shape), tuple(label.shape)
    require(
        len(shape) > 2 and shape[1] > 1,
        "logits",
        got=shape,
        expected="the shape (batch, classes, *spatial) with at least 2 classes",
    )
    require(
        not (label.is_floating_point() or label.is_complex() or label.dtype == torch.bool),
        "label",
        got=label.dtype,
        expected="an integer type, such as torch.int64",
    )
    expected = (shape[0], 1, *shape[2:])
    require(found == expected, "label", got=found, expected=f"the shape {expected} for logits of {shape}")


def upcast_half(logits: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32.

    In half precision, sums over a volume overflow or lose all small terms.
    """
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def split_ignored(label: Tensor, ignore_label: int | None) -> tuple[Tensor, Tensor | None]:
    """Return each voxel's class as int64, and the mask of valid voxels.

    The class of ignored voxels is 0. The mask is None if all voxels are valid.
    """
    if ignore_label is None:
        return label.long(), None
    valid = label != ignore_label
    return label.long().masked_fill(~valid, 0), valid
