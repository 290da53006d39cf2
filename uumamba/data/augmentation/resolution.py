"""Gaussian blur and simulated low resolution."""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from uumamba.data.augmentation.parameters import IntensityTransform, Values, draw_uniform, spatial_axes
from uumamba.runtime.options import PositiveInt, PositiveRange, Probability, check_options

TRUNCATE = 3.0  # radius of the kernel in standard deviations, where it is 1 % of its peak


@check_options
@dataclass(kw_only=True, eq=False)
class Blur(IntensityTransform):
    """Gaussian blur with a drawn width.

    The width is drawn per channel and axis; outside the image its border is repeated.

    Args:
        probability: probability that a sample is chosen.
        channel_probability: probability that a channel of a chosen sample is blurred.
        sigma_voxels: range of the standard deviation.
        axes: number of the last spatial axes to blur.

    Raises:
        UsageError: a probability or the range is invalid.
    """

    name = "blur"
    probability: Probability
    channel_probability: Probability
    sigma_voxels: PositiveRange
    axes: PositiveInt

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """Draw ``sigma_voxels`` ``(channels, axes)``.

        A channel with 0 is unchanged; None leaves all channels unchanged.
        """
        chosen = torch.rand(channels, 1, generator=generator) < self.channel_probability
        sigma_voxels = draw_uniform(generator, self.sigma_voxels, channels, self.axes)
        return {"sigma_voxels": sigma_voxels * chosen} if chosen.any() else None

    def apply(self, image: Tensor, values: Values) -> Tensor:
        sigma_voxels = values["sigma_voxels"].to(image)
        # The radius depends on the range, not on drawn widths, so a sample does not depend on other samples.
        radius = math.ceil(TRUNCATE * self.sigma_voxels[1])
        for index, axis in enumerate(spatial_axes(image)[-self.axes :]):
            image = _blur_axis(image, axis, gaussian_kernel(sigma_voxels[..., index], radius))
        return image


def gaussian_kernel(sigma_voxels: Tensor, radius: int) -> Tensor:
    """Compute normalised kernels ``(*sigma_voxels.shape, 2 radius + 1)``.

    For a width of 0 the kernel is exactly the unit impulse.

    Example:
        >>> gaussian_kernel(torch.tensor([0.0]), 1)
        tensor([[0., 1., 0.]])
    """
    offsets = torch.arange(-radius, radius + 1, device=sigma_voxels.device)
    weights = torch.exp(-0.5 * (offsets / sigma_voxels[..., None].clamp(min=1e-3)) ** 2)
    return weights / weights.sum(dim=-1, keepdim=True)


def _blur_axis(image: Tensor, axis: int, kernel: Tensor) -> Tensor:
    """Convolve one axis as a sum of shifted copies.

    The kernel is symmetric, so two copies share one multiplication.
    """
    radius = kernel.shape[-1] // 2
    length = image.shape[axis]
    padding = [0, 0] * (image.ndim - 2)
    last_first = 2 * (image.ndim - 1 - axis)
    padding[last_first] = padding[last_first + 1] = radius
    padded = F.pad(image, padding, mode="replicate")
    weights = kernel.reshape(*kernel.shape, *(1,) * (image.ndim - 2))
    blurred = image * weights[:, :, radius]
    for shift in range(1, radius + 1):
        pair = padded.narrow(axis, radius - shift, length) + padded.narrow(axis, radius + shift, length)
        blurred.addcmul_(pair, weights[:, :, radius + shift])
    return blurred


@check_options
@dataclass(kw_only=True, eq=False)
class LowResolution(IntensityTransform):
    """Subsampling to the nearest voxels, and linear interpolation back.

    Args:
        probability: probability that a sample is chosen.
        channel_probability: probability that a channel of a chosen sample is coarsened.
        zoom: range of the share of voxels kept along an axis.
        in_plane_only: do not change the first of three spatial axes.

    Raises:
        UsageError: a probability or the range is invalid.
    """

    name = "low_resolution"
    probability: Probability
    channel_probability: Probability
    zoom: PositiveRange
    in_plane_only: bool = False

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """Draw ``zoom`` ``(channels,)``.

        A channel with 0 is unchanged; None leaves all channels unchanged.
        """
        chosen = torch.rand(channels, generator=generator) < self.channel_probability
        return {"zoom": draw_uniform(generator, self.zoom, channels) * chosen} if chosen.any() else None

    def apply(self, image: Tensor, values: Values) -> Tensor:
        coarse = image.clone()  # channel by channel, because each has its own intermediate size
        for row, zooms in enumerate(values["zoom"].tolist()):
            for channel, zoom in enumerate(zooms):
                if zoom:
                    coarse[row, channel] = self._coarsen(image[row, channel], zoom)
        return coarse

    def _coarsen(self, channel: Tensor, zoom: float) -> Tensor:
        planes = channel[None] if self.in_plane_only and channel.ndim == 3 else channel[None, None]
        size = list(planes.shape[2:])
        few = F.interpolate(planes, [max(1, round(length * zoom)) for length in size], mode="nearest-exact")
        return F.interpolate(few, size, mode="bilinear" if len(size) == 2 else "trilinear").reshape(channel.shape)
