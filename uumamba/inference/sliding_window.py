"""Sliding-window inference: overlapping windows, blended by a Gaussian."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.runtime.errors import require

Mode = Literal["constant", "gaussian"]
SMALLEST_WEIGHT = 1e-3
WINDOWS_AT_ONCE, OVERLAP = 4, 0.5


@torch.no_grad()
def sliding_window(
    image: Tensor,
    net: Callable[[Tensor], Tensor],
    *,
    roi_size: Sequence[int],
    sw_batch_size: int = WINDOWS_AT_ONCE,
    overlap: float = OVERLAP,
    mode: Mode = "gaussian",
    sigma_scale: float = 0.125,
    cval: float | None = None,
) -> Tensor:
    r"""Apply a network to an image in overlapping windows.

    The result is the weighted mean of the windows' outputs.

    .. math:: \bar{y}(x) = \frac{\sum_i w(x - s_i)\, y_i(x - s_i)}{\sum_i w(x - s_i)}, \qquad
              w(u) = \max\Big(e^{-\sum_a u_a^2 / 2 (\sigma r_a)^2},\ \min_{u'} w(u'),\ 10^{-3}\Big)

    with the size r and the starts s of the windows, and u measured from a window's centre. The stride is
    ``int(r (1 - overlap))``, and the last window ends at the border. Arguments and results are those of MONAI's
    ``sliding_window_inference``, whose import a single scan avoids.

    Edge cases. An axis shorter than the window is padded on both sides, and the result is cropped. With a 2-D window,
    each slice of a 3-D image along the first spatial axis is a separate image, in common batches. Blending is in
    float32 on the image's device for any type of the network's output, and needs (K + 1) times the memory of the image.
    The training or evaluation mode of the network does not change.

    Args:
        image: ``(C, *S)``.
        net: from ``(B, C, *roi_size)`` to a tensor ``(B, K, *roi_size)`` of logits or probabilities.
        roi_size: size of the window, ``(Y, X)`` or ``(Z, Y, X)``.
        sw_batch_size: windows for each call of ``net``.
        overlap: share of the window's length, at least 0 and below 1.
        mode: ``"gaussian"`` gives the centre of a window the largest weight, ``"constant"`` all voxels the same.
        sigma_scale: standard deviation as a share of the window's length.
        cval: padding value; the minimum of the image by default, as in training.

    Returns:
        ``(K, *S)`` float32.

    Raises:
        UsageError: the axes of image and window do not match, an option is out of range, or ``net`` returns another
            shape.

    Example:
        >>> sliding_window(torch.ones(1, 5, 40, 30), lambda x: x.repeat(1, 2, 1, 1), roi_size=(16, 16)).shape
        torch.Size([2, 5, 40, 30])
    """
    roi = tuple(int(size) for size in roi_size)
    _check_options(image, roi, sw_batch_size, overlap, mode)
    images = image.movedim(1, 0) if len(roi) == image.ndim - 2 else image[None]
    padded, inside = _pad(images, roi, float(image.min()) if cval is None else cval)
    weight = compute_blending_weight(roi, mode=mode, sigma_scale=sigma_scale).to(image.device)
    blended, total = None, torch.zeros(padded.shape[2:], device=image.device)
    starts = list(find_window_starts(padded.shape[2:], roi, overlap))
    for start in starts:
        _view_window(total, start, roi).add_(weight)
    windows = list(itertools.product(range(len(padded)), starts))
    for first in range(0, len(windows), sw_batch_size):
        block = windows[first : first + sw_batch_size]
        found = net(torch.stack([_view_window(padded[index], start, roi) for index, start in block]))
        require(
            isinstance(found, Tensor) and found.shape[:1] + found.shape[2:] == (len(block), *roi),
            "net",
            got=tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__,
            expected=f"one tensor of shape ({len(block)}, classes, {', '.join(map(str, roi))})",
            fix="call net.eval() for a network with deep supervision",
        )
        if blended is None:
            blended = torch.zeros(len(padded), found.shape[1], *padded.shape[2:], device=image.device)
        for (index, start), values in zip(block, found.float() * weight, strict=True):
            _view_window(blended[index], start, roi).add_(values)
    assert blended is not None  # there is at least one window
    result = _view_window(blended.div_(total), *inside)
    return result.movedim(0, 1) if len(roi) == image.ndim - 2 else result[0]


def find_window_starts(size: Sequence[int], roi_size: Sequence[int], overlap: float) -> Iterator[tuple[int, ...]]:
    """Yield the first corners of windows that cover an image.

    The last axis changes fastest.

    Example:
        >>> list(find_window_starts((10,), (4,), overlap=0.5))
        [(0,), (2,), (4,), (6,)]
        >>> list(find_window_starts((9,), (4,), overlap=0.25))
        [(0,), (3,), (5,)]
    """
    axes = []
    for length, window in zip(size, roi_size, strict=True):
        step = max(1, int(window * (1 - overlap)))
        count = math.ceil((length - window) / step) + 1
        axes.append([min(index * step, length - window) for index in range(count)])
    return itertools.product(*axes)


def compute_blending_weight(roi_size: Sequence[int], *, mode: Mode, sigma_scale: float) -> Tensor:
    """Return the positive weight of each voxel of a window.

    The weight is a Gaussian around the centre of the window, or 1.

    Example:
        >>> weight = compute_blending_weight((3,), mode="gaussian", sigma_scale=0.5)  # sigma is 1.5 voxels
        >>> torch.allclose(weight, torch.tensor([-0.5 / 1.5**2, 0.0, -0.5 / 1.5**2]).exp())
        True
    """
    weight = torch.ones(())
    if mode == "constant":
        return weight.expand(tuple(roi_size))
    for length in roi_size:
        distance = torch.arange(length, dtype=torch.float32) - (length - 1) / 2
        weight = weight[..., None] * torch.exp(-(distance**2) / (2 * (sigma_scale * length) ** 2))
    return weight.clamp(min=max(weight.min().item(), SMALLEST_WEIGHT))


def _pad(images: Tensor, roi: Sequence[int], value: float) -> tuple[Tensor, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pad images to the size of the window.

    Also returned are start and size of the originals in the padded images.
    """
    size = tuple(images.shape[2:])
    missing = [max(0, window - length) for window, length in zip(roi, size, strict=True)]
    before = tuple(short // 2 for short in missing)
    pairs = [(first, short - first) for first, short in zip(before, missing, strict=True)]
    return F.pad(images, list(itertools.chain(*reversed(pairs))), value=value), (before, size)


def _view_window(array: Tensor, start: Sequence[int], roi: Sequence[int]) -> Tensor:
    """Return a view of a window along the last axes."""
    for axis, (first, length) in enumerate(zip(start, roi, strict=True), start=-len(roi)):
        array = array.narrow(axis, first, length)
    return array


def _check_options(image: Tensor, roi: tuple[int, ...], sw_batch_size: int, overlap: float, mode: str) -> None:
    require(
        len(roi) in (image.ndim - 1, image.ndim - 2) and min(roi, default=0) >= 1 and 0 not in image.shape,
        "roi_size",
        got=roi,
        expected=f"positive lengths of all or the last two spatial axes of an image {tuple(image.shape)}",
    )
    require(sw_batch_size >= 1, "sw_batch_size", got=sw_batch_size, expected="1 or more")
    require(0 <= overlap < 1, "overlap", got=overlap, expected="a share of at least 0 and below 1")
    require(mode in ("constant", "gaussian"), "mode", got=mode, expected="one of constant, gaussian")
