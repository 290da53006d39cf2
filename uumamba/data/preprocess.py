"""Native scan to network input, and network output back to the scan's grid."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.chunks import spans
from uumamba.data.geometry import Box, Geometry, find_geometry
from uumamba.data.normalise import DENSE_HU, Image, find_shift, normaliser_for_ct, normaliser_for_scan
from uumamba.data.recipe import CtStatistics, PreprocessRecipe
from uumamba.data.resample import (
    fill,
    image_slabs,
    is_anisotropic,
    label_slabs,
    resample_label,
    resample_linear,
    resampled_argmax,
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
    at a time. A scan stored in any of the 48 axis orders and directions gives the same array. Normalisation comes
    before resampling. Where the voxels of the old or new grid are over three times as long as wide, planes and the axis
    through them are resampled differently (:func:`uumamba.data.resample.image_slabs`). Besides the given scan, memory
    holds slabs of a few million voxels; ``"zscore"`` needs one float32 volume for a moment, to find the percentiles.

    The content of an image is what is not 0; of CT, where air is not 0, it is what is denser than -500 HU, midway
    between lung and soft tissue: the box of the body and the table. Faults of the Hounsfield units are undone first
    (:func:`uumamba.data.normalise.find_shift`).

    Args:
        image: native, three axes as stored, of any real type.
        spacing_mm: of its axes.
        recipe: spacing and normalisation.
        affine: 4 x 4, voxel index to RAS+ millimetres; without it the axes count as R, A, S.
        label: on the same grid; its structures widen the crop, so that none is ever cut.
        case_id: named in errors.

    Raises:
        CaseError: the image has no content, is constant, or holds NaN or infinity.
        UsageError: a shape, the spacing or the affine is invalid, or the recipe lacks its statistics.
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
    ) -> None:
        if label is not None:
            require(label.shape == image.shape, "label", got=label.shape, expected=f"the image's shape {image.shape}")
        require(
            recipe.is_complete,
            "ct_statistics",
            got=recipe.ct_statistics,
            expected="the statistics of the data set",
            fix="prepare the data set, which finds them",
        )
        if image.dtype.kind == "f":
            image = image.astype(np.float32, copy=False)
        whole = find_geometry(image.shape, spacing_mm=spacing_mm, affine=affine)
        oriented = _stored_by_planes(whole.orient(image))
        oriented_label = None if label is None else _stored_by_planes(whole.orient(label))
        statistics = recipe.ct_statistics
        shift = 0 if statistics is None else find_shift(oriented, case_id=case_id)
        denser_than = None if statistics is None else DENSE_HU - shift
        box = _box_of_content(oriented, oriented_label, denser_than=denser_than, case_id=case_id)
        self.geometry: Geometry = whole.with_crop(box, target_spacing_mm=recipe.spacing_mm)
        self._image = oriented[self.geometry.crop]
        self._label = None if oriented_label is None else oriented_label[self.geometry.crop]
        self._normalise = (
            normaliser_for_scan(self._image, recipe.clip_percentiles, case_id=case_id)
            if statistics is None
            else normaliser_for_ct(statistics, shift=shift)
        )

    def image_slabs(self) -> Iterator[Image]:
        """Yield the prepared image's planes in order.

        They are float32 ``(n, Y, X)`` at a time.
        """
        old, new = self.geometry.cropped_shape, self.geometry.prepared_shape
        return image_slabs(
            lambda first, last: self._normalise(self._image[first:last]),
            old,
            new,
            anisotropic=is_anisotropic(self.geometry.oriented_spacing_mm, self.geometry.prepared_spacing_mm),
        )

    def label_slabs(self) -> Iterator[LabelMap]:
        """Yield the prepared label's planes in order.

        They are uint8 ``(n, Y, X)`` at a time.

        Raises:
            UsageError: the scan came without a label.
        """
        label = self._label
        if label is None:
            raise UsageError("label", got=None, expected="a label map")
        old, new = self.geometry.cropped_shape, self.geometry.prepared_shape
        return label_slabs(lambda first, last: label[first:last], old, new)


def preprocess(
    image: NDArray[Any],
    *,
    spacing_mm: Sequence[float],
    recipe: PreprocessRecipe,
    affine: NDArray[np.float64] | None = None,
    label: NDArray[np.uint8] | None = None,
    case_id: str = "image",
) -> tuple[Image, LabelMap | None, Geometry]:
    """Preprocess a scan at once.

    Orient, crop to the content, clip and normalise, resample: all of a :class:`Preprocessing`.

    Returns:
        Image ``(1, Z, Y, X)`` float32, label ``(Z, Y, X)`` uint8 or None, and the geometry that undoes it.

    Raises:
        CaseError: the image has no content, is constant, or holds NaN or infinity.
        UsageError: a shape, the spacing or the affine is invalid, or the recipe lacks its statistics.

    Example:
        >>> scan = np.random.default_rng(0).random((40, 48, 6))
        >>> recipe = PreprocessRecipe(spacing_mm=(None, 2.0, 2.0))
        >>> array, _, geometry = preprocess(scan, spacing_mm=(1.0, 1.0, 8.0), recipe=recipe)
        >>> array.shape, restore_label(np.zeros(array.shape[1:], np.uint8), geometry).shape
        ((1, 6, 24, 20), (40, 48, 6))
    """
    work = Preprocessing(image, spacing_mm=spacing_mm, recipe=recipe, affine=affine, label=label, case_id=case_id)
    array = np.empty((1, *work.geometry.prepared_shape), dtype=np.float32)
    fill(array[0], work.image_slabs())
    if label is None:
        return array, None, work.geometry
    prepared = np.empty(work.geometry.prepared_shape, dtype=np.uint8)
    fill(prepared, work.label_slabs())
    return array, prepared, work.geometry


def restore_label(label: LabelMap, geometry: Geometry) -> LabelMap:
    """Put a prepared label map on its native grid.

    ``(Z, Y, X)`` becomes the native shape, with 0 outside the crop. The original label comes back bit for bit when the
    recipe kept the spacing. Otherwise a smooth structure as large as a ventricle comes back with a Dice of 0.97 or
    more. On ACDC at 1.5 mm the mean over every fourth frame was 0.998 for RV and LV and 0.994 for MYO, the worst 0.984,
    0.986 and 0.966.
    """
    _check_shape(label.shape, geometry)
    return _to_native(resample_label(np.asarray(label), geometry.cropped_shape), geometry, outside=0)


def restore_probabilities(probabilities: NDArray[np.floating[Any]], geometry: Geometry) -> Image:
    """Resample probabilities ``(K, Z, Y, X)`` linearly to the native grid, ``(K, *native)``.

    Outside the crop the background (class 0) is certain. This holds K native volumes; :func:`restore` holds two.
    """
    _check_shape(probabilities.shape[1:], geometry)
    resampled = resample_linear(np.asarray(probabilities, dtype=np.float32), geometry.cropped_shape)
    native = _to_native(resampled, geometry, outside=0)
    inside = _to_native(np.ones(geometry.cropped_shape, dtype=np.bool_), geometry, outside=0)
    native[0][~inside] = 1.0
    return native


def restore(probabilities: NDArray[np.floating[Any]], geometry: Geometry) -> LabelMap:
    """Find the most probable class of each native voxel, uint8, after linear resampling.

    Probabilities ``(K, Z, Y, X)`` may also be logits or any scores. A tie goes to the smaller class; outside the crop
    is background.

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
    return _to_native(resampled_argmax(scores, geometry.cropped_shape), geometry, outside=0)


def _to_native(cropped: NDArray[Any], geometry: Geometry, *, outside: int) -> NDArray[Any]:
    leading = cropped.shape[:-3]
    whole = np.full((*leading, *geometry.oriented_shape), outside, dtype=cropped.dtype)
    whole[(..., *geometry.crop)] = cropped
    return np.ascontiguousarray(geometry.unorient(whole))


def _check_shape(shape: Sequence[int], geometry: Geometry) -> None:
    require(
        tuple(shape) == geometry.prepared_shape,
        "shape",
        got=tuple(shape),
        expected=f"the prepared shape {geometry.prepared_shape}",
    )


def _stored_by_planes(oriented: NDArray[Any]) -> NDArray[Any]:
    """Copy an array unless its planes are contiguous in memory.

    They may be stored forwards or backwards. Reading some planes of another would walk through the whole of its memory.
    """
    strides = [abs(stride) for stride in oriented.strides]
    return oriented if strides == sorted(strides, reverse=True) else np.ascontiguousarray(oriented)


def _box_of_content(image: NDArray[Any], label: LabelMap | None, *, denser_than: float | None, case_id: str) -> Box:
    """Find the smallest box around the content and every structure.

    Content is above a value, or other than 0 where that is None.

    Raises:
        CaseError: there is no content, or the image holds NaN or infinity.
    """
    filled = [np.zeros(size, dtype=np.bool_) for size in image.shape]
    for first, last in spans(len(image), image[0].size):
        planes = image[first:last]
        require_case(
            planes.dtype.kind != "f" or np.isfinite(planes).all(),
            case_id,
            "image",
            got="NaN or infinity",
            expected="finite voxels",
            fix="repair or leave out the scan",
        )
        _mark(filled, planes != 0 if denser_than is None else planes > denser_than, first, last)
    require_case(
        filled[0].any(),
        case_id,
        "image",
        got="0 everywhere" if denser_than is None else "air alone",
        expected="content",
        fix="restore or leave out the scan",
    )
    if label is not None:
        for first, last in spans(len(label), label[0].size):
            _mark(filled, label[first:last] != 0, first, last)
    z, y, x = (np.flatnonzero(each) for each in filled)
    return (int(z[0]), int(y[0]), int(x[0])), (int(z[-1]) + 1, int(y[-1]) + 1, int(x[-1]) + 1)


def _mark(filled: list[NDArray[np.bool_]], content: NDArray[np.bool_], first: int, last: int) -> None:
    """Mark along each axis where planes ``[first, last)`` have content."""
    filled[0][first:last] |= content.any(axis=(1, 2))
    shadow: NDArray[np.bool_] = np.any(content, axis=0)
    filled[1] |= shadow.any(axis=1)
    filled[2] |= shadow.any(axis=0)
