"""Autocast precision of a network."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "float16"]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """Return an autocast context for ``precision``; float32 needs none.

    Example:
        >>> with autocast(torch.device("cpu"), "bfloat16"):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))
