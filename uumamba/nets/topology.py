"""The shape of a U-shaped residual network: widths, strides, kernels and block counts of its stages, checked once."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Required, TypedDict

from uumamba.runtime.errors import require

PerAxis = int | Sequence[int]


class Stages(TypedDict, total=False):
    """What a user writes to describe the stages of a network; only ``features`` and ``strides`` are required.

    Attributes:
        features: width of each stage, full resolution first.
        strides: of each stage, one number or one an axis; 1 at the first.
        kernel_sizes: one number for all (3), or of each stage, one number or one an axis; odd.
        encoder_blocks: residual blocks of each stage; as released (2, and 1 in the deeper half) when None.
        decoder_blocks: of each decoder stage, the deepest first; as released when None.
        stem_blocks: blocks before the first stage, at full resolution; as many as that stage has when None, and 0
            for no stem, which about halves the encoder's work at full resolution.
        full_resolution_skip: join the full-resolution features in the last decoder stage; as released when None,
            which is yes in 3-D and no in 2-D.
    """

    features: Required[Sequence[int]]
    strides: Required[Sequence[PerAxis]]
    kernel_sizes: int | Sequence[PerAxis]
    encoder_blocks: Sequence[int] | None
    decoder_blocks: Sequence[int] | None
    stem_blocks: int | None
    full_resolution_skip: bool | None


@dataclass(frozen=True)
class Topology:
    """Stages from full resolution (0) to the bottleneck, every entry in full.

    Made by ``Topology.of`` from what a user writes; nothing passed in is kept or changed.
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
    def of(
        cls,
        spatial_dims: int,
        *,
        features: Sequence[int],
        strides: Sequence[PerAxis],
        kernel_sizes: int | Sequence[PerAxis] = 3,
        encoder_blocks: Sequence[int] | None = None,
        decoder_blocks: Sequence[int] | None = None,
        stem_blocks: int | None = None,
        full_resolution_skip: bool | None = None,
    ) -> "Topology":
        """Fill in the defaults of the released networks and check that the stages agree.

        Raises:
            ValueError: naming the argument, what was expected and what was found.

        Example:
            >>> Topology.of(2, features=(32, 64, 128), strides=(1, 2, 2)).encoder_blocks
            (2, 2, 1)
        """
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims should be 2 or 3; found {spatial_dims}")
        stages = len(features)
        if stages < 2:
            raise ValueError(f"features should name at least 2 stages; found {tuple(features)}")
        kernels = (kernel_sizes,) * stages if isinstance(kernel_sizes, int) else kernel_sizes
        encoder = _two_then_one(stages, stages) if encoder_blocks is None else tuple(encoder_blocks)
        decoder = _two_then_one(stages - 1, stages) if decoder_blocks is None else tuple(decoder_blocks)
        topology = cls(
            spatial_dims=spatial_dims,
            features=tuple(features),
            strides=_each_axis("strides", strides, stages, spatial_dims),
            kernel_sizes=_each_axis("kernel_sizes", kernels, stages, spatial_dims),
            encoder_blocks=encoder,
            decoder_blocks=decoder,
            stem_blocks=next(iter(encoder), 0) if stem_blocks is None else stem_blocks,
            full_resolution_skip=spatial_dims == 3 if full_resolution_skip is None else full_resolution_skip,
        )
        topology._check()
        return topology

    def _check(self) -> None:
        stages = len(self.features)
        for name, count in (("encoder_blocks", stages), ("decoder_blocks", stages - 1)):
            if len(getattr(self, name)) != count:
                raise ValueError(f"{name} should have {count} numbers for {stages} stages; found {getattr(self, name)}")
        for name in ("features", "encoder_blocks", "decoder_blocks"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name} should be 1 or more at every stage; found {getattr(self, name)}")
        if self.stem_blocks < 0:
            raise ValueError(f"stem_blocks should be 0 (no stem) or more; found {self.stem_blocks}")
        if any(size % 2 == 0 for kernel in self.kernel_sizes for size in kernel):
            raise ValueError(f"kernel_sizes should be odd, to keep the size of the map; found {self.kernel_sizes}")
        if prod(self.strides[0]) != 1:
            raise ValueError(f"strides[0] should be 1 on every axis, the full resolution; found {self.strides[0]}")

    @property
    def required_divisor(self) -> tuple[int, ...]:
        """What the patch must be divisible by, an axis: the product of the strides."""
        return tuple(prod(axis) for axis in zip(*self.strides, strict=True))

    @property
    def minimum_patch(self) -> tuple[int, ...]:
        """The smallest patch whose bottleneck has two voxels, so that norms and the scan have something to do there."""
        *leading, last = self.required_divisor
        return (*leading, 2 * last)

    def check_patch(self, patch_size: Sequence[int], name: str = "the image") -> None:
        """Refuse a size that the strides do not divide.

        Raises:
            ValueError: naming the axis, the divisor and the nearest sizes that work.
        """
        if len(patch_size) != self.spatial_dims:
            raise ValueError(f"{name} should have {self.spatial_dims} spatial axes; found {tuple(patch_size)}")
        check_divisible(patch_size, self.required_divisor, name=name)

    def feature_map_sizes(self, patch_size: Sequence[int]) -> tuple[tuple[int, ...], ...]:
        """The spatial size of each stage's output.

        Example:
            >>> Topology.of(2, features=(8, 8), strides=(1, 2)).feature_map_sizes((6, 4))
            ((6, 4), (3, 2))
        """
        sizes, size = [], tuple(patch_size)
        for stride in self.strides:
            size = tuple(length // step for length, step in zip(size, stride, strict=True))
            sizes.append(size)
        return tuple(sizes)


def check_divisible(size: Sequence[int], divisor: Sequence[int], *, name: str = "image") -> None:
    """Raise if a network's strides do not divide a spatial size.

    Raises:
        UsageError: the fix names the axis and the nearest valid sizes.

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


def _two_then_one(count: int, stages: int) -> tuple[int, ...]:
    """Two blocks at the first half of the stages, one at the others: what the released constructors turn plans into."""
    return tuple(2 if index < ceil(stages / 2) else 1 for index in range(count))


def _each_axis(name: str, given: Sequence[PerAxis], stages: int, spatial_dims: int) -> tuple[tuple[int, ...], ...]:
    full = tuple((entry,) * spatial_dims if isinstance(entry, int) else tuple(entry) for entry in given)
    if len(full) != stages:
        raise ValueError(f"{name} should have {stages} entries, one a stage as in features; found {len(full)}")
    if any(len(entry) != spatial_dims or min(entry) < 1 for entry in full):
        raise ValueError(f"{name} should give {spatial_dims} positive numbers a stage; found {full}")
    return full
