"""What every loss asks of its logits and label, said once."""

import torch
from torch import Tensor


def check_inputs(logits: Tensor, label: Tensor) -> None:
    """Refuse a label that is not one channel of integer classes on the grid of the logits.

    Values are not looked at: on an accelerator that would wait for the device.

    Raises:
        TypeError: the label is not an integer tensor.
        ValueError: there are fewer than two classes, or the shapes do not fit; the message says what was found.

    Example:
        >>> check_inputs(torch.zeros(2, 4, 8, 8), torch.zeros(2, 8, 8, dtype=torch.long))
        Traceback (most recent call last):
        ValueError: label must be (batch, 1, *spatial) = (2, 1, 8, 8) for logits of shape (2, 4, 8, 8), got (2, 8, 8)
    """
    if logits.ndim < 3 or logits.shape[1] < 2:
        raise ValueError(
            f"logits must be (batch, classes, *spatial) with at least 2 classes, got shape {tuple(logits.shape)}"
        )
    if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise TypeError(f"label must hold integer classes such as torch.int64, got {label.dtype}")
    expected = (logits.shape[0], 1, *logits.shape[2:])
    if tuple(label.shape) != expected:
        raise ValueError(
            f"label must be (batch, 1, *spatial) = {expected} for logits of shape {tuple(logits.shape)}, "
            f"got {tuple(label.shape)}"
        )


def full_precision(logits: Tensor) -> Tensor:
    """Half and bfloat16 to float32, others unchanged: sums over a volume overflow or stall in half precision."""
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def own_and_valid(label: Tensor, ignore_label: int | None) -> tuple[Tensor, Tensor | None]:
    """The class of each voxel as int64, 0 where it is ignored, and which voxels are not; None where all count."""
    if ignore_label is None:
        return label.long(), None
    valid = label != ignore_label
    return label.long().masked_fill(~valid, 0), valid
