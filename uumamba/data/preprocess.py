"""Preprocessing of scans, and its inverse for network outputs."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.chunks import spans
from uumamba.data.geometry import Box, Geometry, find_geometry
from uumamba.data.grid import MAX_VOLUME_BYTES, Image, format_spacing
from uumamba.data.locations import find_foreground
from uumamba.data.normalised_channel import Channel, mark
from uumamba.data.recipe import CtStatistics, PreprocessRecipe
from uumamba.data.resample import (
    ReadImage,
    fill,
    image_slabs,
    is_anisotropic,
    label_slabs,
    resample_label,
    resample_linear,
    resampled_argmax,
    resampled_regions,
)
from uumamba.runtime.errors import UsageError, require, require_case
from uumamba.types import LabelMap

__all__ = [
    "CtStatistics",
    "PreprocessRecipe",
    "Preprocessing",
    "preprocess",
    "restore",
    "restore_label",
    "restore_probabilities",
]


class Preprocessing:
    """Preprocessing of one scan.

    Steps, in order: orient, crop to the content, clip and normalise, resample. Planes are computed on demand, one slab
    after another. A scan stored in any of the 48 axis orders and directions gives the same array. For anisotropic
    voxels (over three times as long as wide in the old or new grid), planes and the through-plane axis are resampled
    differently (:func:`uumamba.data.resample.image_slabs`). In addition to the given scan, memory holds slabs of a few
    million voxels.

    Each channel is normalised on its own; all have the same crop, the box around the content of every channel and every
    structure. The content of an image is the box of the voxels other than 0. The content of CT is the box of the voxels
    denser than -500 HU, between lung and soft tissue: body and table. Hounsfield units are corrected first
    (:func:`uumamba.data.normalise.find_shift`).

    Args:
        image: native image, three axes as stored, of any real dtype; several channels are a first axis.
        spacing_mm: spacing of the image's axes.
        recipe: spacing and normalisation.
        affine: 4 x 4, voxel index to RAS+ millimetres; without an affine the axes are R, A, S.
        label: label on the same grid; the crop includes all structures.
        case_id: name of the case in errors.
        ignore_label: value of ignored voxels in the label, which do not enlarge the crop; None if there are none.

    Raises:
        CaseError: the image has no content, is constant, holds NaN or infinity, or would be too large after resampling.
        UsageError: a shape, the spacing or the affine is invalid, or the recipe has no statistics of CT or is for
            another number of channels.
    """

    def __init__(
        self,
        image: NDArray[Any],
        *,
        spacing_mm: Sequence[float],
        recipe: PreprocessRecipe,
        affine: NDArray[np.float64] | None = None,
        label: NDArray[np.uint8] | None = None,
        case_id: str = "image",
        ignore_label: int | None = None,
    ) -> None:
        grid = image.shape[-3:]
        if label is not None:
            require(label.shape == grid, "label", got=label.shape, expected=f"the image's shape {grid}")
        require(
            recipe.is_complete,
            "ct_statistics",
            got=recipe.ct_statistics,
            expected="the statistics of the data set",
            fix="prepare the data set, or set preprocess.ct_statistics",
        )
        if image.dtype.kind == "f":
            image = image.astype(np.float32, copy=False)
        native = [*image] if image.ndim == 4 else [image]
        uncropped = find_geometry(native[0].shape, spacing_mm=spacing_mm, affine=affine)
        oriented = [_make_planes_contiguous(uncropped.orient(each)) for each in native]
        oriented_label = None if label is None else _make_planes_contiguous(uncropped.orient(label))
        numbers: Sequence[int | None] = range(len(oriented)) if len(oriented) > 1 else [None]
        channels = [
            Channel(each, one, case_id=case_id, number=number)
            for each, one, number in zip(oriented, recipe.split(len(oriented)), numbers, strict=True)
        ]
        box = _find_content(channels, oriented_label, case_id=case_id, ignore_label=ignore_label)
        self.geometry: Geometry = uncropped.with_crop(box, target_spacing_mm=recipe.spacing_mm)
        _check_prepared_size(self.geometry, len(channels), case_id)
        self._label = None if oriented_label is None else oriented_label[self.geometry.crop]
        self._readers = [channel.crop(self.geometry.crop) for channel in channels]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self._readers)

    def image_slabs(self) -> Iterator[Image]:
        """Yield the prepared image in slabs, float32 ``(n, Y, X)``.

        The slabs of a channel follow those of the one before.
        """
        for read in self._readers:
            yield from self._image_slabs(read)

    def _image_slabs(self, read: ReadImage) -> Iterator[Image]:
        return image_slabs(
            read,
            self.geometry.cropped_shape,
            self.geometry.prepared_shape,
            anisotropic=is_anisotropic(self.geometry.oriented_spacing_mm, self.geometry.prepared_spacing_mm),
        )

    def image_planes(self) -> Iterator[Image]:
        """Yield the prepared image in planes, float32 ``(C, Y, X)``."""
        channels = [self._image_slabs(read) for read in self._readers]
        for slabs in zip(*channels, strict=True):
            for planes in zip(*slabs, strict=True):
                yield np.stack(planes)

    def label_slabs(self) -> Iterator[LabelMap]:
        """Yield the prepared label in slabs, uint8 ``(n, Y, X)``.

        Raises:
            UsageError: the scan has no label.
        """
        label = self._label
        if label is None:
            raise UsageError("label", got=None, expected="a label map")
        return label_slabs(
            lambda first, last: label[first:last], self.geometry.cropped_shape, self.geometry.prepared_shape
        )


def preprocess(
    image: NDArray[Any],
    *,
    spacing_mm: Sequence[float],
    recipe: PreprocessRecipe,
    affine: NDArray[np.float64] | None = None,
    label: NDArray[np.uint8] | None = None,
    case_id: str = "image",
    ignore_label: int | None = None,
) -> tuple[Image, LabelMap | None, Geometry]:
    """Preprocess a scan in memory, as :class:`Preprocessing` does in slabs.

    Returns:
        Image ``(C, Z, Y, X)`` float32, label ``(Z, Y, X)`` uint8 or None, and the geometry for the inverse.

    Raises:
        CaseError: the image has no content, is constant, holds NaN or infinity, or would be too large after resampling.
        UsageError: a shape, the spacing or the affine is invalid, or the recipe has no statistics of CT.

    Example:
        >>> scan = np.random.default_rng(0).random((40, 48, 6))
        >>> recipe = PreprocessRecipe(spacing_mm=(None, 2.0, 2.0))
        >>> array, _, geometry = preprocess(scan, spacing_mm=(1.0, 1.0, 8.0), recipe=recipe)
        >>> array.shape, restore_label(np.zeros(array.shape[1:], np.uint8), geometry).shape
        ((1, 6, 24, 20), (40, 48, 6))
    """
    work = Preprocessing(
        image,
        spacing_mm=spacing_mm,
        recipe=recipe,
        affine=affine,
        label=label,
        case_id=case_id,
        ignore_label=ignore_label,
    )
    planes, *plane = work.geometry.prepared_shape
    array = np.empty((work.channels, planes, *plane), dtype=np.float32)
    fill(array.reshape(-1, *plane), work.image_slabs())
    if label is None:
        return array, None, work.geometry
    prepared = np.empty(work.geometry.prepared_shape, dtype=np.uint8)
    fill(prepared, work.label_slabs())
    return array, prepared, work.geometry


def restore_label(label: LabelMap, geometry: Geometry) -> LabelMap:
    """Map a prepared label ``(Z, Y, X)`` back to the native grid.

    Voxels outside the crop are 0. Without resampling the native label is restored bit for bit. With resampling, a
    smooth structure as large as a ventricle is restored with a Dice of at least 0.97. On ACDC at 1.5 mm the mean over
    every fourth frame was 0.998 for RV and LV and 0.994 for MYO, the worst 0.984, 0.986 and 0.966.
    """
    _check_shape(label.shape, geometry)
    return _to_native(resample_label(np.asarray(label), geometry.cropped_shape), geometry)


def restore_probabilities(
    probabilities: NDArray[np.floating[Any]], geometry: Geometry, *, has_background: bool = True
) -> Image:
    """Resample probabilities ``(K, Z, Y, X)`` linearly to the native grid.

    The result is ``(K, *native)``. Outside the crop the probability of background (class 0) is 1; without background,
    all probabilities are 0. Memory holds K native volumes, but only two in :func:`restore`.
    """
    _check_shape(probabilities.shape[1:], geometry)
    native = _to_native(resample_linear(np.asarray(probabilities, dtype=np.float32), geometry.cropped_shape), geometry)
    if not has_background:
        return native
    inside = _to_native(np.ones(geometry.cropped_shape, dtype=np.bool_), geometry)
    native[0][~inside] = 1.0
    return native


def restore(
    probabilities: NDArray[np.floating[Any]], geometry: Geometry, *, painted: Sequence[int] | None = None
) -> LabelMap:
    """Find each native voxel's most probable class or last region.

    Probabilities, logits or other scores ``(K, Z, Y, X)`` are resampled linearly. A tie goes to the smaller class;
    voxels outside the crop are background. The result is uint8.

    Args:
        probabilities: of each class, or of each region.
        geometry: geometry of the prepared image.
        painted: class that each region paints where its probability is above 0.5, later ones over earlier ones; None
            for classes.

    Raises:
        UsageError: a probability is NaN or infinite, the shape is not the geometry's, or there are over 256 classes.
    """
    scores = np.asarray(probabilities)
    _check_shape(scores.shape[1:], geometry)
    require(len(scores) <= 256, "probabilities", got=f"{len(scores)} classes", expected="at most 256")
    require(
        all(np.isfinite(each).all() for each in scores),
        "probabilities",
        got="NaN or infinity",
        expected="finite numbers",
    )
    if painted is not None:
        return _to_native(resampled_regions(scores, geometry.cropped_shape, painted), geometry)
    return _to_native(resampled_argmax(scores, geometry.cropped_shape), geometry)


def _to_native(cropped: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    oriented = np.zeros((*cropped.shape[:-3], *geometry.oriented_shape), dtype=cropped.dtype)
    oriented[(..., *geometry.crop)] = cropped
    return np.ascontiguousarray(geometry.unorient(oriented))


def _check_shape(shape: Sequence[int], geometry: Geometry) -> None:
    require(
        tuple(shape) == geometry.prepared_shape,
        "shape",
        got=tuple(shape),
        expected=f"the prepared shape {geometry.prepared_shape}",
    )


def _check_prepared_size(geometry: Geometry, channels: int, case_id: str) -> None:
    nbytes = 4 * channels * math.prod(map(float, geometry.prepared_shape))
    require_case(
        nbytes <= MAX_VOLUME_BYTES,
        case_id,
        "spacing_mm",
        got=f"{format_spacing(np.array(geometry.oriented_spacing_mm))} mm, {nbytes / 2**30:.1f} GiB after resampling",
        expected=f"at most {MAX_VOLUME_BYTES / 2**30:.1f} GiB",
        fix="correct the spacing, or crop the scan",
    )


def _make_planes_contiguous(oriented: NDArray[Any]) -> NDArray[Any]:
    """Copy an array unless its planes are contiguous in memory.

    Axes may be stored in either direction. Reading a few planes of another layout would read all of the memory.
    """
    strides = [abs(stride) for stride in oriented.strides]
    return oriented if strides == sorted(strides, reverse=True) else np.ascontiguousarray(oriented)


def _find_content(
    channels: Sequence[Channel], label: LabelMap | None, *, case_id: str, ignore_label: int | None = None
) -> Box:
    """Find the smallest box around all channels' content and all structures.

    Raises:
        CaseError: there is no content, or the image holds NaN or infinity.
    """
    filled = [np.zeros(size, dtype=np.bool_) for size in channels[0].image.shape]
    for channel in channels:
        channel.mark_content(filled)
    require_case(
        filled[0].any(),
        case_id,
        "image",
        got="0 everywhere",
        expected="an image with content",
        fix="restore or exclude the scan",
    )
    if label is not None:
        for first, last in spans(len(label), label[0].size):
            mark(filled, find_foreground(label[first:last], ignore_label), first, last)
    z, y, x = (np.flatnonzero(each) for each in filled)
    return (int(z[0]), int(y[0]), int(x[0])), (int(z[-1]) + 1, int(y[-1]) + 1, int(x[-1]) + 1)
