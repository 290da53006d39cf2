"""Augmentation as data."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, NonNegativeInt

from uumamba.config.base import Config


def _in_order(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower end {bounds[0]} is above the upper end {bounds[1]}")
    return bounds


Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Range = Annotated[tuple[float, float], AfterValidator(_in_order)]


class AugmentConfig(Config):
    """Probabilities and ranges of :class:`uumamba.data.Augment`, under its names; the defaults are nnU-Net's.

    ``swap_sides`` lets patches be mirrored along left and right although structures have sides: the labels of the data
    set's ``mirror_pairs`` are exchanged with it, in training, and back when mirrored predictions are averaged.
    """

    rotation_probability: Probability = 0.2
    rotation_deg: Range | None = None
    scale_probability: Probability = 0.2
    scale: Range = (0.7, 1.4)
    mirror_axes: tuple[NonNegativeInt, ...] = ()
    mirror_probability: Probability = 0.5
    swap_sides: bool = False
    bias_field_probability: Probability = 0.0
    bias_field_strength: Range = (0.1, 0.5)
    noise_probability: Probability = 0.1
    noise_std: Range = (0.0, 0.1)
    blur_probability: Probability = 0.2
    blur_channel_probability: Probability = 0.5
    blur_sigma_voxels: Range = (0.5, 1.0)
    brightness_probability: Probability = 0.15
    brightness: Range = (0.75, 1.25)
    contrast_probability: Probability = 0.15
    contrast: Range = (0.75, 1.25)
    low_resolution_probability: Probability = 0.25
    low_resolution_channel_probability: Probability = 0.5
    low_resolution: Range = (0.5, 1.0)
    inverted_gamma_probability: Probability = 0.1
    gamma_probability: Probability = 0.3
    gamma: Range = (0.7, 1.5)

    def build(
        self, *, patch_size: tuple[int, ...], mirror_swaps: Mapping[int, Sequence[tuple[int, int]]] | None = None
    ) -> Any:
        """The augmentation of patches of that size; which labels a mirror exchanges is the data set's to say."""
        from uumamba.data.augment import Augment

        arguments = self.model_dump(exclude={"swap_sides"})
        return Augment(patch_size=patch_size, mirror_swaps=mirror_swaps, **arguments)
