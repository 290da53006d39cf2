"""What a closure returns beside the loss: logits, or logits and the label."""

from typing import Any

from torch import Tensor

from uumamba.runtime.errors import UsageError


def logits_of(outputs: Any) -> Tensor:
    """The logits; the finest ones under deep supervision.

    Args:
        outputs: logits, ``(logits, label)``, or either with a list of logits, finest first.

    Raises:
        UsageError: there are none.

    Example:
        >>> import torch
        >>> logits_of(([torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)], torch.zeros(2, 8, 8))).shape
        torch.Size([2, 3, 8, 8])
    """
    logits = outputs[0] if isinstance(outputs, tuple) and outputs else outputs
    if isinstance(logits, list) and logits:
        logits = logits[0]
    if not isinstance(logits, Tensor) or logits.ndim < 2:
        raise UsageError(
            f"The rule needs the network's logits and the closure returned {_name(outputs)} beside the loss; "
            "return (loss, logits) or (loss, (logits, label)), logits of shape (batch, classes, ...)."
        )
    return logits


def logits_and_label_of(outputs: Any) -> tuple[Tensor, Tensor]:
    """The finest logits and the label.

    Args:
        outputs: ``(logits, label)``; logits may be a list, finest first.

    Raises:
        UsageError: there is no such pair.

    Example:
        >>> import torch
        >>> logits, label = logits_and_label_of((torch.zeros(2, 3), torch.tensor([0, 2])))
        >>> label
        tensor([0, 2])
    """
    if not (isinstance(outputs, tuple) and len(outputs) == 2 and isinstance(outputs[1], Tensor)):
        raise UsageError(
            f"The loss to climb needs logits and label and the closure returned {_name(outputs)} beside the loss; "
            "return (loss, (logits, label))."
        )
    return logits_of(outputs), outputs[1]


def _name(outputs: Any) -> str:
    return "nothing" if outputs is None else f"a {type(outputs).__name__}"
