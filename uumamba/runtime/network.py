"""Helpers for any network: unwrap, evaluate, read logits, move batches."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uumamba.runtime.errors import require


def bare_network(net: nn.Module) -> nn.Module:
    """Return the network inside ``DistributedDataParallel`` and ``torch.compile``, nested in any order.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> bare_network(net) is net
        True
    """
    inner = net.module if isinstance(net, DistributedDataParallel) else getattr(net, "_orig_mod", None)
    return net if inner is None else bare_network(inner)


def finest_logits(outputs: Any) -> Tensor:
    """Return the finest logits of a network's output.

    Under deep supervision these are the first of a list or tuple.

    Args:
        outputs: ``(batch, classes, *spatial)``, or a list or tuple of such tensors, finest first.

    Raises:
        UsageError: the output holds no logits.

    Example:
        >>> finest_logits([torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 4, 4)]).shape
        torch.Size([2, 3, 8, 8])
    """
    logits: Tensor = outputs[0] if isinstance(outputs, list | tuple) and outputs else outputs
    require(
        isinstance(logits, Tensor) and logits.ndim >= 2,
        "net",
        got=f"an output of type {type(outputs).__name__}",
        expected="logits of shape (batch, classes, ...) or a list of logits, finest first",
        fix="return logits from forward",
    )
    return logits


def read_classes(label: Tensor, ignore_label: int | None) -> tuple[Tensor, Tensor]:
    """Return classes as int64 and the mask of valid voxels.

    The class of ignored voxels is 0. A comparison in the label's own type would take 156 in uint8 for -100.

    Example:
        >>> read_classes(torch.tensor([1, 156, 255], dtype=torch.uint8), 255)
        (tensor([  1, 156,   0]), tensor([ True,  True, False]))
    """
    classes = label.long()
    valid = torch.ones_like(classes, dtype=torch.bool) if ignore_label is None else classes != ignore_label
    return classes.masked_fill(~valid, 0), valid


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Run a block in evaluation mode without gradients.

    Each module's mode is restored afterwards.

    Example:
        >>> net = nn.Dropout()
        >>> with evaluating(net):
        ...     net.training
        False
        >>> net.training
        True
    """
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training


def batch_to_device(batch: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Move the tensors of a batch to a device.

    Copies from pinned memory do not block. Other values are kept.

    Example:
        >>> batch_to_device({"image": torch.zeros(1), "case_id": ["a"]}, "cpu")
        {'image': tensor([0.]), 'case_id': ['a']}
    """
    return {
        key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for key, value in batch.items()
    }


def read_loss_weights(loss: object) -> dict[str, float]:
    """Read a loss's learned weights; empty for a loss without ``weights()``."""
    for module in loss.modules() if isinstance(loss, nn.Module) else ():
        weights = getattr(module, "weights", None)
        if callable(weights):
            return {str(name): float(value) for name, value in weights().items()}
    return {}
