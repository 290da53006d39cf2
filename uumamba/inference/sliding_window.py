"""Sliding-window inference: overlapping windows, blended by a Gaussian."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from uumamba.inference.slab_blending import Mode, blend_slabs
from uumamba.runtime.errors import require

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
    float32 on the device of the network's output for any of its types, and needs K times the memory of the image.
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
    slabs = blend_slabs(
        lambda: iter(image.unbind(1)),
        image.shape[1:],
        net,
        roi_size=roi,
        sw_batch_size=sw_batch_size,
        overlap=overlap,
        mode=mode,
        sigma_scale=sigma_scale,
        cval=cval,
    )
    result, first = torch.empty(0), 0
    for slab in slabs:
        if first == 0:
            result = torch.empty((len(slab), *image.shape[1:]), device=slab.device)
        result[:, first : first + slab.shape[1]] = slab
        first += slab.shape[1]
    return result


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
