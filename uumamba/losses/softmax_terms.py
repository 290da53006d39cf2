"""Sums over a softmax of large logits, computed slab by slab.

Torch's operators store a softmax of the logits' size for every loss term and allocate up to three more in the backward
pass. The two functions of this module store only the logits and recompute the softmax slab by slab.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from uumamba.losses.inputs import keep_valid, upcast_half
from uumamba.losses.slabs import Slab, slabs


def voxel_nll(logits: Tensor, own_class: Tensor, valid: Tensor | None) -> Tensor:
    r"""Return :math:`-\log p_y` of each voxel, 0 where not valid.

    Args:
        logits: ``(batch, classes, *spatial)``.
        own_class: class of each voxel, int64 ``(batch, 1, *spatial)``; a class also in voxels that are not valid.
        valid: mask of this shape; None if all voxels are valid.

    Returns:
        ``(batch, 1, *spatial)`` in at least float32.

    Example:
        >>> voxel_nll(torch.zeros(1, 4, 2), torch.ones(1, 1, 2, dtype=torch.long), None)  # ln 4
        tensor([[[1.3863, 1.3863]]])
    """
    return cast(Tensor, _VoxelNll.apply(logits, own_class, valid))  # type: ignore[no-untyped-call]  # torch's apply


def softmax_sums(logits: Tensor, own_class: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    r"""Return :math:`\sum_v p y` and :math:`\sum_v p` over valid voxels.

    Both sums are ``(batch, classes)``. Arguments as for :func:`voxel_nll`.

    Example:
        >>> softmax_sums(torch.zeros(1, 4, 2), torch.ones(1, 1, 2, dtype=torch.long), None)
        (tensor([[0.0000, 0.5000, 0.0000, 0.0000]]), tensor([[0.5000, 0.5000, 0.5000, 0.5000]]))
    """
    found = _SoftmaxSums.apply(logits, own_class, valid)  # type: ignore[no-untyped-call]  # as above
    return cast(tuple[Tensor, Tensor], found)


def sum_by_class(values: Tensor, own_class: Tensor, *, classes: int) -> Tensor:
    """Sum values over the voxels of each class.

    Values are ``(batch, 1, *spatial)``, sums ``(batch, classes)``. Each row of the grid has its own bins, which are
    summed afterwards: a single float32 sum over a volume loses digits.
    """
    values, own_class = (tensor.reshape(tensor.shape[0], -1, tensor.shape[-1]) for tensor in (values, own_class))
    bins = values.new_zeros(*values.shape[:2], classes)
    return bins.scatter_add(2, own_class, values).sum(1)


def _read_slab(logits: Tensor, valid: Tensor | None, slab: Slab) -> Tensor:
    """Return a slab of logits in float32 or more, 0 if ignored."""
    return keep_valid(upcast_half(logits[slab]), None if valid is None else valid[slab])


class _VoxelNll(Function):
    @staticmethod
    def forward(logits: Tensor, own_class: Tensor, valid: Tensor | None) -> Tensor:
        found = torch.empty_like(own_class, dtype=upcast_half(logits[:0]).dtype)
        for slab in slabs(logits):
            log_probabilities = _read_slab(logits, valid, slab).log_softmax(1)
            found[slab] = -log_probabilities.gather(1, own_class[slab])
        return keep_valid(found, valid)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, own_class, valid = ctx.saved_tensors
        grad = keep_valid(grads[0], valid)
        found = torch.empty_like(logits)
        for slab in slabs(logits):
            share = _read_slab(logits, valid, slab).softmax(1) * grad[slab]
            found[slab] = share.scatter_add(1, own_class[slab], -grad[slab])
        return found, None, None


class _SoftmaxSums(Function):
    @staticmethod
    def forward(logits: Tensor, own_class: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
        classes = logits.shape[1]
        own = torch.zeros(logits.shape[:2], dtype=upcast_half(logits[:0]).dtype, device=logits.device)
        total = torch.zeros_like(own)
        for slab in slabs(logits):
            probabilities = _read_slab(logits, valid, slab).softmax(1)
            if valid is not None:
                probabilities = keep_valid(probabilities, valid[slab])
            label = own_class[slab]
            own[slab[0]] += sum_by_class(probabilities.gather(1, label), label, classes=classes)
            total[slab[0]] += probabilities.flatten(2).sum(2)
        return own, total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, own_class, valid = ctx.saved_tensors
        found = torch.empty_like(logits)
        for slab in slabs(logits):
            probabilities, label = _read_slab(logits, valid, slab).softmax(1), own_class[slab]
            # dL/dp is the gradient of the class's sum, plus, for the voxel's own class, the gradient of its overlap.
            by_class = grads[1][slab[0]].reshape(*grads[1][slab[0]].shape, *(1,) * (logits.ndim - 2))
            flat = label.flatten(1)
            at_own = probabilities.gather(1, label) * grads[0][slab[0]].gather(1, flat).reshape(label.shape)
            share = by_class - (probabilities * by_class).sum(1, keepdim=True) - at_own
            part = (probabilities * share).scatter_add(1, label, at_own)
            found[slab] = part if valid is None else keep_valid(part, valid[slab])
        return found, None, None
