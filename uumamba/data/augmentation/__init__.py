"""Transforms of :class:`uumamba.data.augment.Augment`: each draws its parameters first, then applies them."""

from uumamba.data.augmentation.affine import Affine, default_rotation_deg, rotates_in_plane_only
from uumamba.data.augmentation.bias_field import BiasField
from uumamba.data.augmentation.blur import Blur
from uumamba.data.augmentation.brightness import Brightness
from uumamba.data.augmentation.contrast import Contrast
from uumamba.data.augmentation.gamma import Gamma
from uumamba.data.augmentation.low_resolution import LowResolution
from uumamba.data.augmentation.mirror import Mirror
from uumamba.data.augmentation.noise import Noise
from uumamba.data.augmentation.parameters import Drawn, IntensityTransform, Values

__all__ = [
    "Affine",
    "BiasField",
    "Blur",
    "Brightness",
    "Contrast",
    "Drawn",
    "Gamma",
    "IntensityTransform",
    "LowResolution",
    "Mirror",
    "Noise",
    "Values",
    "default_rotation_deg",
    "rotates_in_plane_only",
]
