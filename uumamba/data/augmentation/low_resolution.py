"""Simulated low resolution."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from uumamba.data.augmentation.parameters import Range, Values, check_probability, check_range, uniform


class LowResolution:
    """Keep only every n-th voxel of a channel (nearest), then interpolate back to the old grid (linear).

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
