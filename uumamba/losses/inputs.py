"""Checks and conversions of logits and labels, shared by all losses."""

import torch
from torch import Tensor

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.network import read_classes


def read_label(logits: Tensor, label: Tensor, ignore_label: int | None) -> tuple[Tensor, Tensor | None]:
    """Check logits and label; return classes and the mask of valid voxels.

    The class of ignored voxels is 0, so that it is always an index. On a CPU a wrong value raises immediately. On an
    accelerator that would wait for the device, so there the device raises (``label: got a value ...``).

    Args:
        logits: ``(batch, classes, *spatial)`` with at least two classes.
        label: integer classes, ``(batch, 1, *spatial)``.
        ignore_label: label of ignored voxels; None if there are none.

    Returns:
        Classes as int64, and the mask, None without ``ignore_label``; both in the label's shape.

    Raises:
        UsageError: there are fewer than two classes, the label is not of an integer type, the shapes do not match, or a
            value is neither a class nor ``ignore_label``.

    Example:
        >>> read_label(torch.zeros(1, 2, 3), torch.tensor([[[0, 1, 255]]]), 255)
        (tensor([[[0, 1, 0]]]), tensor([[[ True,  True, False]]]))
        >>> read_label(torch.zeros(1, 2, 3), torch.tensor([[[0, 1, -100]]]), 255)
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: label: got -100, expected classes 0 to 1, or 255 for ignored voxels. \
Fix: correct the labels, or set ignore_label=-100.
    """
    check_shapes(logits, label)
    own_class, valid = read_valid(label, ignore_label)
    if own_class.numel():
        check_classes(own_class, logits.shape[1], ignore_label)
    return own_class, valid


def read_valid(label: Tensor, ignore_label: int | None) -> tuple[Tensor, Tensor | None]:
    """Return classes and valid voxels, None without ``ignore_label``."""
    return (label.long(), None) if ignore_label is None else read_classes(label, ignore_label)


def keep_valid(values: Tensor, valid: Tensor | None) -> Tensor:
    """Set ignored voxels to 0, whatever their value, and their gradients too.

    A product with the mask would keep NaN and infinity.
    """
    return values if valid is None else values.masked_fill(~valid, 0)


def upcast_half(logits: Tensor) -> Tensor:
    """Convert float16 and bfloat16 to float32.

    In half precision, sums over a volume overflow or lose all small terms.
    """
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def check_shapes(logits: Tensor, label: Tensor, *, least: int = 2) -> None:
    """Raise if logits and label do not match.

    Args:
        logits: ``(batch, classes, *spatial)``.
        label: ``(batch, 1, *spatial)``.
        least: smallest number of outputs.

    Raises:
        UsageError: a shape does not match, or the label is not of an integer type.
    """
    shape, found = tuple(logits.shape), tuple(label.shape)
    require(
        len(shape) > 2 and shape[1] >= least,
        "logits",
        got=shape,
        expected="the shape (batch, classes, *spatial) with at least 2 classes" if least > 1 else "spatial axes",
        fix="for classification add a spatial axis: loss(logits[..., None], label.view(-1, 1, 1))"
        if len(shape) == 2
        else "",
    )
    require(
        not (label.is_floating_point() or label.is_complex() or label.dtype == torch.bool),
        "label",
        got=label.dtype,
        expected="an integer type, such as torch.int64",
        fix="convert whole numbers with label.long()",
    )
    expected = (shape[0], 1, *shape[2:])
    fixes = {
        (shape[0], *shape[2:]): "add the channel axis with label[:, None]",
        (*expected[:1], *expected[2:], 1): "move the channel axis with label.movedim(-1, 1)",
        shape: "convert one-hot labels with label.argmax(1, keepdim=True)",
    }
    require(
        found == expected,
        "label",
        got=found,
        expected=f"the shape {expected} for logits of {shape}",
        fix=fixes.get(found, "use the grid of the logits, with one channel"),
    )


def check_classes(own_class: Tensor, classes: int, ignore_label: int | None) -> None:
    """Raise if a class is out of range.

    Raises:
        UsageError: a value is neither a class nor ``ignore_label``.
    """
    while not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(own_class):
        own_class = torch._C._functorch.get_unwrapped(own_class)  # under vmap, the values of all samples
    low, high = own_class.aminmax()
    ignored = "" if ignore_label is None else f", or {ignore_label} for ignored voxels"
    expected = f"classes 0 to {classes - 1}{ignored}"
    try:
        torch._assert_async((low >= 0) & (high < classes), f"label: got a value out of range, expected {expected}.")
    except RuntimeError:  # on a CPU; an accelerator raises later
        got = int(low) if low < 0 else int(high)
        fix = f"correct the labels, or set ignore_label={got}"
        raise UsageError("label", got=got, expected=expected, fix=fix) from None
