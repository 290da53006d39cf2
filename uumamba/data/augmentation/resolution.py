"""Losses of resolution: Gaussian blur, and simulated low resolution."""

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from uumamba.data.augmentation.parameters import (
    Range,
    Values,
    check_probability,
    check_range,
    spatial_axes,
    uniform,
)

TRUNCATE = 3.0
"""The kernel ends this many standard deviations from its centre, where it has fallen to 1 % of its peak."""


class Blur:
    """Convolve with a Gaussian of drawn width.

    The width is drawn for each channel and axis; the border is continued outwards.

    Args:
        probability: of a sample being considered.
        channel_probability: of each channel of such a sample being blurred.
        sigma_voxels: range of the standard deviation.
        axes: how many of the last spatial axes are blurred.

    Raises:
        UsageError: a probability or the range is invalid.
    """

    name = "blur"

    def __init__(
        self,
        *,
        probability: float = 0.2,
        channel_probability: float = 0.5,
        sigma_voxels: Range = (0.5, 1.0),
        axes: int = 2,
    ) -> None:
        self.probability = check_probability("blur_probability", probability)
        self.channel_probability = check_probability("blur_channel_probability", channel_probability)
        self.sigma_voxels = check_range("blur_sigma_voxels", sigma_voxels, above=0.0)
        self.axes = axes

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """Draw ``sigma_voxels`` ``(channels, axes)``, 0 where a channel is left alone, or None where all are."""
        chosen = torch.rand(channels, 1, generator=generator) < self.channel_probability
        sigma_voxels = uniform(generator, self.sigma_voxels, channels, self.axes)
        return {"sigma_voxels": sigma_voxels * chosen} if chosen.any() else None

    def apply(self, image: Tensor, values: Values) -> Tensor:
        """Blur along each axis."""
        sigma_voxels = values["sigma_voxels"].to(image)
        # The radius follows from the range, not from the drawn widths: a sample must not depend on its neighbours.
        radius = math.ceil(TRUNCATE * self.sigma_voxels[1])
        for index, axis in enumerate(spatial_axes(image)[-self.axes :]):
            image = _blur_axis(image, axis, gaussian_kernel(sigma_voxels[..., index], radius))
        return image


def gaussian_kernel(sigma_voxels: Tensor, radius: int) -> Tensor:
    """Compute normalised kernels ``(*sigma_voxels.shape, 2 radius + 1)``.

    A width of 0 gives exactly the unit impulse.

    Example:
        >>> gaussian_kernel(torch.tensor([0.0]), 1)
        tensor([[0., 1., 0.]])
    """
    offsets = torch.arange(-radius, radius + 1, device=sigma_voxels.device)
    weights = torch.exp(-0.5 * (offsets / sigma_voxels[..., None].clamp(min=1e-3)) ** 2)
    return weights / weights.sum(dim=-1, keepdim=True)


def _blur_axis(image: Tensor, axis: int, kernel: Tensor) -> Tensor:
    """Sum shifted copies; the kernel's two equal halves share one multiplication."""
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


class LowResolution:
    """Keep every n-th voxel, then interpolate back to the old grid.

    The kept voxels are the nearest ones; the interpolation is linear.

    Args:
        probability: of a sample being considered.
        channel_probability: of each channel of such a sample being coarsened.
        zoom: range of the share of voxels kept along an axis.
        in_plane_only: leave the first of three spatial axes alone.

    Raises:
        UsageError: a probability or the range is invalid.
    """

    name = "low_resolution"

    def __init__(
        self,
        *,
        probability: float = 0.25,
        channel_probability: float = 0.5,
        zoom: Range = (0.5, 1.0),
        in_plane_only: bool = False,
    ) -> None:
        self.probability = check_probability("low_resolution_probability", probability)
        self.channel_probability = check_probability("low_resolution_channel_probability", channel_probability)
        self.zoom = check_range("low_resolution", zoom, above=0.0)
        self.in_plane_only = in_plane_only

    def draw(self, generator: Generator, channels: int) -> Values | None:
        """Draw ``zoom`` ``(channels,)``, 0 where a channel is left alone, or None where all are."""
        chosen = torch.rand(channels, generator=generator) < self.channel_probability
        return {"zoom": uniform(generator, self.zoom, channels) * chosen} if chosen.any() else None

    def apply(self, image: Tensor, values: Values) -> Tensor:
        """Coarsen and interpolate back. Each channel has its own intermediate size, so they are done one by one."""
        coarse = image.clone()
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
