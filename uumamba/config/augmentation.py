"""Augmentation of a run, with the sides of structures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uumamba.config.bind import Part
from uumamba.data.augment import Augment
from uumamba.runtime.options import check_options


@check_options
@dataclass(frozen=True, kw_only=True)
class SideOptions:
    """Options of a run's augmentation in addition to those of its transforms.

    Args:
        swap_sides: allow left-right mirroring for data sets with left and right structures: the labels of the data
            set's ``mirror_pairs`` are swapped in training, and swapped back when mirrored predictions are averaged.
    """

    swap_sides: bool = False


def build_augment(
    part: Part,
    *,
    patch_size: tuple[int, ...],
    mirror_swaps: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    channels: int = 1,
) -> Augment:
    """Build the augmentation.

    Args:
        part: of kind ``augment``.
        patch_size: in voxels, one number per axis.
        mirror_swaps: label pairs of the data set to swap, by mirrored axis.
        channels: number of channels of an image.
    """
    return Augment(part.bind()(patch_size=patch_size, mirror_swaps=mirror_swaps, channels=channels))
