"""Augmentation: probabilities and ranges."""

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt

from uumamba.config.base import Config
from uumamba.data.augment import Augment
from uumamba.runtime.errors import require


def _check_order(bounds: tuple[float, float]) -> tuple[float, float]:
    require(bounds[0] <= bounds[1], "", got=bounds, expected="a lower and an upper bound, in this order")
    return bounds


Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Range = Annotated[tuple[float, float], AfterValidator(_check_order)]


class AugmentConfig(Config):
    """Arguments of :class:`uumamba.data.Augment`; the defaults are nnU-Net's.

    ``swap_sides`` allows left-right mirroring for data sets with left and right structures: the labels of the data
    set's ``mirror_pairs`` are swapped in training, and swapped back when mirrored predictions are averaged.
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
    ) -> Augment:
        """Build the augmentation.

        Args:
            patch_size: in voxels, one number per axis.
            mirror_swaps: label pairs of the data set to swap, by mirrored axis.
        """
        options = self.model_dump(exclude={"swap_sides"})
        return Augment(patch_size=patch_size, mirror_swaps=mirror_swaps, **options)
