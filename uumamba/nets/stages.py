"""Stages of a residual U-Net: widths, strides, kernels and block counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Required, TypedDict

from uumamba.runtime.errors import require
from uumamba.runtime.options import NonNegativeInt, PositiveInt, SpatialDims, check_options

PerAxis = PositiveInt | Sequence[PositiveInt]


class LegacyStages(TypedDict, total=False):
    """Stages of a legacy network, as constructor arguments.

    Attributes:
        features: width of each stage, full resolution first.
        strides: stride of each stage, one number or one per axis; 1 for the first stage.
        kernel_sizes: one odd number for all stages, or for each stage one number or one per axis.
        encoder_blocks: residual blocks of each stage. None: 2 everywhere.
        decoder_blocks: residual blocks of each decoder stage, the deepest first. None: 2 everywhere.
    """

    features: Required[Sequence[PositiveInt]]
    strides: Required[Sequence[PerAxis]]
    kernel_sizes: PositiveInt | Sequence[PerAxis]
    encoder_blocks: Sequence[PositiveInt] | None
    decoder_blocks: Sequence[PositiveInt] | None


class Stages(LegacyStages, total=False):
    """Stages of a network, as constructor arguments.

    Only ``features`` and ``strides`` are required.

    Attributes:
        features: width of each stage, full resolution first.
        strides: stride of each stage, one number or one per axis; 1 for the first stage.
        kernel_sizes: one odd number for all stages, or for each stage one number or one per axis.
        encoder_blocks: residual blocks of each stage. None: as in the released networks, 2, and 1 in the deeper half.
        decoder_blocks: residual blocks of each decoder stage, the deepest first. None: as in the released networks.
        stem_blocks: blocks before the first stage, at full resolution. None: as many as the first stage has. 0: no
            stem, about half of the encoder's work at full resolution.
        full_resolution_skip: join the full-resolution features in the last decoder stage. None: as in the released
            networks, true in 3-D and false in 2-D.
    """

    stem_blocks: NonNegativeInt | None
    full_resolution_skip: bool | None


@dataclass(frozen=True)
class Topology:
    """Complete description of the stages, from full resolution to the bottleneck.

    ``Topology.build`` creates it from :class:`Stages`. The arguments are copied and not changed.
    """

    spatial_dims: int
    features: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    encoder_blocks: tuple[int, ...]
    decoder_blocks: tuple[int, ...]
    stem_blocks: int
    full_resolution_skip: bool

    @classmethod
    @check_options
    def build(
        cls,
        spatial_dims: SpatialDims,
        *,
        features: Sequence[PositiveInt],
        strides: Sequence[PerAxis],
        kernel_sizes: PositiveInt | Sequence[PerAxis] = 3,
        encoder_blocks: Sequence[PositiveInt] | None = None,
        decoder_blocks: Sequence[PositiveInt] | None = None,
        stem_blocks: NonNegativeInt | None = None,
        full_resolution_skip: bool | None = None,
    ) -> "Topology":
        """Fill in the released defaults and validate the stages.

        Raises:
            UsageError: an argument has the wrong number of stages, or a number is out of range.

        Example:
            >>> Topology.build(2, features=(32, 64, 128), strides=(1, 2, 2)).encoder_blocks
            (2, 2, 1)
        """
        stages = len(features)
        require(stages >= 2, "features", got=tuple(features), expected="2 or more numbers, one per stage")
        kernels = (kernel_sizes,) * stages if isinstance(kernel_sizes, int) else kernel_sizes
        # The released networks have two blocks in each stage of the first half and one in the others.
        released = tuple(2 if stage < ceil(stages / 2) else 1 for stage in range(stages))
        encoder = released if encoder_blocks is None else tuple(encoder_blocks)
        decoder = released[:-1] if decoder_blocks is None else tuple(decoder_blocks)
        for key, blocks, count in (("encoder_blocks", encoder, stages), ("decoder_blocks", decoder, stages - 1)):
            require(len(blocks) == count, key, got=blocks, expected=f"{count} numbers, one per stage")
        topology = cls(
            spatial_dims=spatial_dims,
            features=tuple(features),
            strides=_fill_axes("strides", strides, stages, spatial_dims),
            kernel_sizes=_fill_axes("kernel_sizes", kernels, stages, spatial_dims),
            encoder_blocks=encoder,
            decoder_blocks=decoder,
            stem_blocks=encoder[0] if stem_blocks is None else stem_blocks,
            full_resolution_skip=spatial_dims == 3 if full_resolution_skip is None else full_resolution_skip,
        )
        odd = all(size % 2 for kernel in topology.kernel_sizes for size in kernel)
        require(odd, "kernel_sizes", got=kernel_sizes, expected="odd numbers")
        require(prod(topology.strides[0]) == 1, "strides", got=strides, expected="the stride 1 at the first stage")
        return topology

    @property
    def required_divisor(self) -> tuple[int, ...]:
        """Product of the strides on each axis; it divides the patch size."""
        return tuple(prod(axis) for axis in zip(*self.strides, strict=True))

    @property
    def minimum_patch(self) -> tuple[int, ...]:
        """Smallest patch with two voxels at the bottleneck."""
        return smallest_patch(self.required_divisor)

    def check_patch(self, patch_size: Sequence[int], name: str = "image") -> None:
        """Raise if the strides do not divide a spatial size.

        Raises:
            UsageError: the number of axes is wrong, or the strides do not divide an axis; the fix gives the
                nearest sizes.
        """
        require(
            len(patch_size) == self.spatial_dims,
            name,
            got=tuple(patch_size),
            expected=f"{self.spatial_dims} spatial axes",
        )
        check_divisible(patch_size, self.required_divisor, name=name)

    def feature_map_sizes(self, patch_size: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """Return the spatial size of each stage's output.

        Example:
            >>> Topology.build(2, features=(8, 8), strides=(1, 2)).feature_map_sizes((6, 4))
            ((6, 4), (3, 2))
        """
        sizes, size = [], tuple(patch_size)
        for stride in self.strides:
            size = tuple(length // step for length, step in zip(size, stride, strict=True))
            sizes.append(size)
        return tuple(sizes)


def smallest_patch(divisor: Sequence[int]) -> tuple[int, ...]:
    """Return the smallest patch with two voxels at the bottleneck.

    The norm of a single voxel has no variance.

    Example:
        >>> smallest_patch((4, 8))
        (4, 16)
    """
    *leading, last = divisor
    return (*leading, 2 * last)


def check_divisible(size: Sequence[int], divisor: Sequence[int], *, name: str = "image") -> None:
    """Raise if a network's strides do not divide a spatial size.

    Raises:
        UsageError: an axis is not divisible; the fix gives the axis and the nearest valid sizes.

    Example:
        >>> check_divisible((96, 100), (8, 8), name="training.patch_size")
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: training.patch_size: got (96, 100), expected multiples of (8, 8), the \
product of the network's strides. Fix: pad, crop or set axis 1 to 96 or 104.
    """
    for axis, (length, unit) in enumerate(zip(size, divisor, strict=True)):
        near = f"{length // unit * unit} or " if length > unit else ""
        require(
            length >= 1 and length % unit == 0,
            name,
            got=tuple(size),
            expected=f"multiples of {tuple(divisor)}, the product of the network's strides",
            fix=f"pad, crop or set axis {axis} to {near}{max(1, ceil(length / unit)) * unit}",
        )


def _fill_axes(key: str, given: Sequence[PerAxis], stages: int, spatial_dims: int) -> tuple[tuple[int, ...], ...]:
    full = tuple((entry,) * spatial_dims if isinstance(entry, int) else tuple(entry) for entry in given)
    require(
        len(full) == stages and all(len(entry) == spatial_dims for entry in full),
        key,
        got=tuple(given),
        expected=f"one entry for each of the {stages} stages, of {spatial_dims} numbers",
    )
    return full
