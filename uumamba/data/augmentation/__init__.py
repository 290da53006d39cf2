"""Transforms of :class:`uumamba.data.augment.Augment`.

Each transform draws its parameters first, then applies them.
"""

from uumamba.data.augmentation.affine import Affine, default_rotation_deg, rotates_in_plane_only
from uumamba.data.augmentation.intensity import BiasField, Brightness, Contrast, Gamma, Noise
from uumamba.data.augmentation.mirror import Mirror
from uumamba.data.augmentation.parameters import Drawn, IntensityTransform, SpatialTransform, Transform, Values
from uumamba.data.augmentation.resolution import Blur, LowResolution

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
    "SpatialTransform",
    "Transform",
    "Values",
    "default_rotation_deg",
    "rotates_in_plane_only",
]


def __dir__() -> list[str]:
    return __all__
