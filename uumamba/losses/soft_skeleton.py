"""Differentiable skeleton by repeated erosion and opening."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

Pick = Callable[[Tensor, Tensor], Tensor]


def soft_skeleton(image: Tensor, *, iterations: int) -> Tensor:
    r"""Compute the soft skeleton of an image or mask.

    .. math:: I_0 = I, \quad I_{i+1} = \mathrm{erode}(I_i), \quad
        E_i = \max(I_i - \mathrm{dilate}(I_{i+1}), 0), \quad S = 1 - \prod_{i=0}^{k} (1 - E_i)

    Values are in [0, 1]. Erosion is the minimum over a voxel and its neighbours along the axes, dilation the maximum
    over all neighbours; voxels outside the image are excluded. A structure of radius r voxels vanishes after about r
    erosions, so with fewer iterations the middle of a thick vessel has no skeleton. Unlike an exact skeleton the result
    may be disconnected.

    The backward pass recomputes each iteration from its two stored images: at most 2k + 21 copies of the image are in
    memory. MONAI's soft_skel needs 180 for k = 5.

    Args:
        image: ``(batch, channel, *spatial)``, floating or bool.
        iterations: k, at least 0.

    Example:
        >>> bar = torch.zeros(1, 1, 5, 7, dtype=torch.bool)
        >>> bar[..., 1:4, :] = True
        >>> soft_skeleton(bar, iterations=2)[0, 0].long()
        tensor([[0, 0, 0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0, 0, 0],
                [1, 1, 1, 1, 1, 1, 1],
                [0, 0, 0, 0, 0, 0, 0],
                [0, 0, 0, 0, 0, 0, 0]])

    References:
        Shit et al., *clDice: a Novel Topology-Preserving Loss Function for Tubular Structure Segmentation*, CVPR 2021,
        arXiv:2003.07311. Differs from the paper: equal neighbours share the gradient.
    """
    skeleton = torch.zeros_like(image)
    for _ in range(iterations + 1):
        if image.dtype == torch.bool:
            eroded = _erode(image, torch.logical_and)
            image, skeleton = eroded, skeleton | (image & ~_dilate(eroded, torch.logical_or))
        else:
            image, skeleton = _SoftStep.apply(image, skeleton)  # type: ignore[no-untyped-call]  # torch does not type apply
    return skeleton


class _SoftStep(Function):
    """One iteration: the eroded image and the updated skeleton.

    The voxels that the opening removes are added to the skeleton.
    """

    @staticmethod
    def forward(image: Tensor, skeleton: Tensor) -> tuple[Tensor, Tensor]:
        eroded = _erode(image, torch.minimum)
        removed = (image - _dilate(eroded, torch.maximum)).relu()
        return eroded, skeleton + removed * (1 - skeleton)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        image, skeleton = ctx.saved_tensors
        by_axis = [_pick_of_three(image, axis, torch.minimum) for axis in range(2, image.ndim)]
        eroded = reduce(torch.minimum, by_axis)
        steps = [eroded]
        for axis in range(2, image.ndim):
            steps.append(_pick_of_three(steps[-1], axis, torch.maximum))
        removed = (image - steps[-1]).relu()
        grad_image = grads[1] * (1 - skeleton) * (removed > 0)
        grad_dilated = -grad_image
        for axis in reversed(range(2, image.ndim)):
            grad_dilated = _backpropagate_pick(steps[axis - 2], steps.pop(), grad_dilated, axis)
        picked = [(each == eroded).to(image.dtype) for each in by_axis]
        grad_eroded = (grads[0] + grad_dilated) / reduce(torch.add, picked)
        for axis, each in enumerate(by_axis, start=2):
            grad_image = grad_image + _backpropagate_pick(image, each, grad_eroded * picked[axis - 2], axis)
        return grad_image, grads[1] * (1 - removed)


def _erode(image: Tensor, smaller: Pick) -> Tensor:
    return reduce(smaller, [_pick_of_three(image, axis, smaller) for axis in range(2, image.ndim)])


def _dilate(image: Tensor, larger: Pick) -> Tensor:
    for axis in range(2, image.ndim):
        image = _pick_of_three(image, axis, larger)
    return image


def _pick_of_three(image: Tensor, axis: int, pick: Pick) -> Tensor:
    """Apply ``pick`` to each voxel and its neighbours along an axis.

    Pooling would be slower, because it stores indices.
    """
    length = image.shape[axis]
    if length == 1:
        return image
    pairs = pick(image.narrow(axis, 0, length - 1), image.narrow(axis, 1, length - 1))
    middle = pick(pairs.narrow(axis, 0, length - 2), pairs.narrow(axis, 1, length - 2))
    return torch.cat([pairs.narrow(axis, 0, 1), middle, pairs.narrow(axis, length - 2, 1)], axis)


def _backpropagate_pick(image: Tensor, picked: Tensor, grad: Tensor, axis: int) -> Tensor:
    """Backpropagate through :func:`_pick_of_three`; equal voxels share the gradient."""
    length = image.shape[axis]
    if length == 1:
        return grad
    first, last = (slice(None),) * axis + (slice(None, -1),), (slice(None),) * axis + (slice(1, None),)
    own, before, after = image == picked, image[first] == picked[last], image[last] == picked[first]
    several = own.to(grad.dtype)
    several[last] += before
    several[first] += after
    share = grad / several
    found = share * own
    found[first] += share[last] * before
    found[last] += share[first] * after
    return found
