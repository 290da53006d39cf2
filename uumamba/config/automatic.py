"""Values that a configuration leaves to the data: spacing, patch and strides.

A configuration may say ``auto`` for ``preprocess.spacing_mm`` or single axes of it, ``training.patch_size``,
``net.strides`` and ``net.kernel_sizes``. Until the cases are known, such a configuration holds stand-ins, with which
every other key is checked.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from statistics import median
from typing import Any

from uumamba.runtime.errors import require

AUTO = "auto"
NORMALISATION = "preprocess.normalisation"
SPACING, PATCH, STRIDES, KERNELS = "preprocess.spacing_mm", "training.patch_size", "net.strides", "net.kernel_sizes"
MOST_VOXELS = {2: 192 * 192, 3: 64 * 80 * 80}
"""Largest derived patch, by number of axes; small enough for two cores."""

_SMALLEST_EDGE = 4
_SAME_SPACING = 2.0


@dataclass(frozen=True)
class DerivedStages:
    """Derived stages of a network.

    Attributes:
        strides: stride of each stage and axis.
        kernel_sizes: kernel of each stage and axis.
    """

    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]

    @property
    def divisor(self) -> tuple[int, ...]:
        """Product of the strides on each axis."""
        return tuple(map(prod, zip(*self.strides, strict=True)))


def find_automatic(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that say ``auto``, with their values.

    Example:
        >>> find_automatic({"preprocess": {"spacing_mm": [None, "auto", "auto"]}, "net": {"strides": "auto"}})
        {'preprocess.spacing_mm': [None, 'auto', 'auto'], 'net.strides': 'auto'}
    """
    given = {key: _get(stored, key) for key in (SPACING, PATCH, STRIDES, KERNELS)}
    return {key: value for key, value in given.items() if _says_auto(value)}


def fill_stand_ins(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Replace each ``auto`` by a value of the right shape, for checks."""
    automatic = find_automatic(stored)
    net = stored["net"] if isinstance(stored.get("net"), Mapping) else {}
    axes, features = net.get("spatial_dims"), net.get("features")
    axes = axes if axes in MOST_VOXELS else 2
    stages = len(features) if isinstance(features, Sequence) else 2
    spacing = _get(stored, SPACING)
    values = {
        SPACING: fill_spacing(spacing if isinstance(spacing, Sequence) else AUTO, (1.0, 1.0, 1.0)),
        PATCH: [8 if STRIDES in automatic else 2 ** max(6, stages)] * axes,
        STRIDES: [[1] * axes] * stages,  # they divide every patch
        KERNELS: 3,
    }
    return put_values(stored, {key: values[key] for key in automatic})


def put_values(stored: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a stored configuration with other values of some keys.

    Example:
        >>> put_values({"net": {"strides": "auto"}}, {"net.strides": [1, 2]})
        {'net': {'strides': [1, 2]}}
    """
    copy = dict(stored)
    for place, value in values.items():
        section, key = place.split(".")
        copy[section] = {**copy[section], key: value}
    return copy


def fill_spacing(wanted: str | Sequence[Any], spacing_mm: Sequence[float]) -> list[float | None]:
    """Replace ``auto`` by a spacing, for all axes or for some.

    Example:
        >>> fill_spacing([None, "auto", "auto"], (10.0, 1.56, 1.56))
        [None, 1.56, 1.56]
    """
    each = [AUTO] * 3 if wanted == AUTO else wanted
    return [mm if value == AUTO else value for value, mm in zip(each, spacing_mm, strict=True)]


def find_median(values: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """Return the median of each axis.

    Example:
        >>> find_median([(10.0, 1.5), (8.0, 1.37), (10.0, 1.5625)])
        (10.0, 1.5)
    """
    return tuple(map(median, zip(*values, strict=True)))


def choose_patch(shape: Sequence[int], spacing_mm: Sequence[float], *, most_voxels: int) -> tuple[int, ...]:
    """Choose a patch, the largest cube in millimetres that fits.

    It fits into the image and a number of voxels; an axis that is shorter than the cube is taken whole.

    Args:
        shape: median shape of the prepared images.
        spacing_mm: spacing of its axes.
        most_voxels: largest number of voxels.

    Example:
        >>> choose_patch((10, 200, 200), (10.0, 1.5, 1.5), most_voxels=64_000)
        (10, 80, 80)
    """
    low, high = 0.0, max(size * mm for size, mm in zip(shape, spacing_mm, strict=True))
    for _ in range(60):  # bisection, to far below a voxel
        edge_mm = (low + high) / 2
        fits = prod(_cut(shape, spacing_mm, edge_mm)) <= most_voxels
        low, high = (edge_mm, high) if fits else (low, edge_mm)
    return _cut(shape, spacing_mm, high if prod(shape) <= most_voxels else low)


def choose_stages(
    patch_size: Sequence[int], spacing_mm: Sequence[float], *, most: int, divides_patch: bool = False
) -> DerivedStages:
    """Choose strides and kernels so that deep features become isotropic.

    From stage to stage the axes are halved whose spacing is within twice the finest of them and that keep at least 4
    voxels; an axis has kernels of 1 until its spacing is within twice the finest.

    Args:
        patch_size: size of the input.
        spacing_mm: spacing of its axes.
        most: largest number of stages; there are fewer where no axis can be halved.
        divides_patch: halve even sizes only, for a given patch.

    Raises:
        UsageError: no axis can be halved once.

    Example:
        >>> choose_stages((10, 80, 80), (10.0, 1.5, 1.5), most=4).strides
        ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2))

    References:
        Isensee et al., *nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation*,
        Nature Methods 2021, doi:10.1038/s41592-020-01008-z.
    """
    size, spacing = [*patch_size], [*spacing_mm]
    strides = [(1,) * len(size)]
    kernels = [_choose_kernel(spacing, (1,) * len(size))]
    while len(strides) < most:
        able = [axis for axis, length in enumerate(size) if length >= 2 * _SMALLEST_EDGE]
        able = [axis for axis in able if not (divides_patch and size[axis] % 2)]
        finest = min((spacing[axis] for axis in able), default=0.0)
        stride = tuple(2 if axis in able and spacing[axis] < _SAME_SPACING * finest else 1 for axis in range(len(size)))
        if prod(stride) == 1:
            break
        size = [ceil(length / step) for length, step in zip(size, stride, strict=True)]
        spacing = [mm * step for mm, step in zip(spacing, stride, strict=True)]
        strides.append(stride)
        kernels.append(_choose_kernel(spacing, kernels[-1]))
    require(
        len(strides) > 1,
        PATCH,
        got=tuple(patch_size),
        expected=f"an axis of at least {2 * _SMALLEST_EDGE} voxels",
        fix="prepare with a finer spacing, or give larger images",
    )
    return DerivedStages(tuple(strides), tuple(kernels))


def round_patch(patch_size: Sequence[int], shape: Sequence[int], divisor: Sequence[int]) -> tuple[int, ...]:
    """Round a patch to multiples of the strides' product.

    An axis that covers the image is rounded up, others down.

    Example:
        >>> round_patch((10, 80, 80), (10, 200, 200), (4, 32, 32))
        (12, 64, 64)
    """
    return tuple(
        step * (ceil(length / step) if length >= whole else max(1, length // step))
        for length, whole, step in zip(patch_size, shape, divisor, strict=True)
    )


def cut_stages(net: Mapping[str, Any], stages: int) -> Iterator[tuple[str, list[Any]]]:
    """Yield the lists of a network's options that are too long, cut.

    Example:
        >>> dict(cut_stages({"features": [8, 16, 32], "decoder_blocks": [1, 1]}, 2))
        {'net.features': [8, 16], 'net.decoder_blocks': [1]}
    """
    for key, kept in (("features", stages), ("encoder_blocks", stages), ("decoder_blocks", stages - 1)):
        given = net.get(key)
        if isinstance(given, Sequence) and len(given) > kept:
            yield f"net.{key}", [*given[:kept]]


def derive(
    stored: Mapping[str, Any],
    automatic: Collection[str],
    *,
    spacing_mm: Sequence[float],
    shape: Sequence[int],
    divisor: Sequence[int],
) -> dict[str, Any]:
    """Derive the values of a configuration's ``auto`` keys.

    Args:
        stored: the configuration with stand-ins.
        automatic: the keys, as of :func:`find_automatic`.
        spacing_mm: median spacing of the prepared images, ``(Z, Y, X)``.
        shape: their median shape.
        divisor: divisor of the patch by the network's own strides, one number per axis of the network.

    Returns:
        New values by key, also of lists that are cut because fewer stages fit.

    Raises:
        UsageError: the images are too small for two stages.
    """
    net = stored["net"]
    found: dict[str, Any] = {}
    axes = len(divisor)
    size, spacing = tuple(shape[-axes:]), tuple(spacing_mm[-axes:])
    given = tuple(stored["training"]["patch_size"])
    is_free = PATCH in automatic
    patch = choose_patch(size, spacing, most_voxels=MOST_VOXELS[axes]) if is_free else given
    if STRIDES in automatic or KERNELS in automatic:
        stages = choose_stages(patch, spacing, most=len(net["features"]), divides_patch=not is_free)
        if STRIDES in automatic:
            found[STRIDES], divisor = [[*stride] for stride in stages.strides], stages.divisor
            found |= cut_stages(net, len(stages.strides))
        if KERNELS in automatic:
            count = len(found.get(STRIDES, net["features"]))
            kernels = (*stages.kernel_sizes, *stages.kernel_sizes[-1:] * count)
            found[KERNELS] = [[*kernel] for kernel in kernels[:count]]
    if is_free:
        found[PATCH] = list(round_patch(patch, size, divisor))
    return found


def _says_auto(value: Any) -> bool:
    return value == AUTO or (isinstance(value, list | tuple) and AUTO in value)


def _get(stored: Mapping[str, Any], place: str) -> Any:
    section, key = place.split(".")
    found = stored.get(section)
    return found.get(key) if isinstance(found, Mapping) else None


def _cut(shape: Sequence[int], spacing_mm: Sequence[float], edge_mm: float) -> tuple[int, ...]:
    return tuple(min(size, max(1, round(edge_mm / mm))) for size, mm in zip(shape, spacing_mm, strict=True))


def _choose_kernel(spacing: Sequence[float], before: Sequence[int]) -> tuple[int, ...]:
    near = (mm < _SAME_SPACING * min(spacing) for mm in spacing)
    return tuple(3 if is_near or kernel == 3 else 1 for is_near, kernel in zip(near, before, strict=True))
