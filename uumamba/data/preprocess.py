"""From a native scan to the array that networks see, and from what they say back to the scan's own grid."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from uumamba.data.geometry import Box, Geometry, find_geometry
from uumamba.data.resample import is_anisotropic, resample_image, resample_label, resample_linear, resampled_argmax
from uumamba.errors import CaseError
from uumamba.types import LabelMap

Image = NDArray[np.float32]


@dataclass(frozen=True)
class CtStatistics:
    """Hounsfield units over a data set's foreground, for a normalisation that is the same for every scan.

    Raises:
        ValueError: the limits do not rise, or the standard deviation is not positive.
    """

    low_hu: float
    high_hu: float
    mean_hu: float
    std_hu: float

    def __post_init__(self) -> None:
        if not (self.low_hu < self.high_hu and self.std_hu > 0):
            raise ValueError(f"CT statistics need low_hu < high_hu and a positive std_hu, got {self}.")


@dataclass(frozen=True)
class PreprocessRecipe:
    """How scans become arrays; equal recipes give equal arrays.

    Args:
        spacing_mm: wanted spacing through the planes and along the two axes in plane; None keeps the scan's own.
        normalisation: ``"zscore"`` clips each scan to its own percentiles, then gives it mean 0 and variance 1;
            ``"ct"`` clips to ``ct_statistics`` and divides by their standard deviation.
        clip_percentiles: lower and upper, of the crop.
        ct_statistics: needed by ``"ct"``.

    Raises:
        ValueError: a spacing is not positive, the percentiles are not in order, or ``"ct"`` lacks its statistics.

    Example:
        >>> PreprocessRecipe(spacing_mm=(None, 1.5, 1.5)).normalisation
        'zscore'
    """

    spacing_mm: tuple[float | None, float | None, float | None]
    normalisation: Literal["zscore", "ct"] = "zscore"
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    ct_statistics: CtStatistics | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "spacing_mm", tuple(self.spacing_mm))
        object.__setattr__(self, "clip_percentiles", tuple(self.clip_percentiles))
        given = [mm for mm in self.spacing_mm if mm is not None]
        if len(self.spacing_mm) != 3 or not all(np.isfinite(mm) and mm > 0 for mm in given):
            raise ValueError(f"spacing_mm is three positive numbers or None, got {self.spacing_mm}.")
        low, high = self.clip_percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"clip_percentiles rise within 0 and 100, got {self.clip_percentiles}.")
        if self.normalisation not in ("zscore", "ct"):
            raise ValueError(f"normalisation is 'zscore' or 'ct', got {self.normalisation!r}.")
        if self.normalisation == "ct" and self.ct_statistics is None:
            raise ValueError("The normalisation 'ct' needs ct_statistics.")

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "PreprocessRecipe":
        """From :meth:`to_json`'s values, also after a round through JSON text."""
        statistics = stored["ct_statistics"]
        return cls(**{**stored, "ct_statistics": None if statistics is None else CtStatistics(**statistics)})


def preprocess(
    image: NDArray[Any],
    *,
    spacing_mm: Sequence[float],
    recipe: PreprocessRecipe,
    affine: NDArray[np.float64] | None = None,
    label: NDArray[np.uint8] | None = None,
    case_id: str = "image",
) -> tuple[Image, LabelMap | None, Geometry]:
    """Orient, crop to what is not zero, clip and normalise, resample.

    The 48 orientations in which one scan can be stored give one array. Normalisation comes before resampling and looks
    at the crop alone. Where the voxels of the old or new grid are over three times as long as wide, planes and the axis
    through them are resampled differently (:func:`uumamba.data.resample.resample_image`).

    Args:
        image: native, three axes as stored.
        spacing_mm: of its axes.
        recipe: what to do.
        affine: 4 x 4, voxel index to RAS+ millimetres; without it the axes count as R, A, S.
        label: on the same grid; its structures widen the crop, so that none is ever cut.
        case_id: named in errors.

    Returns:
        Image ``(1, Z, Y, X)`` float32, label ``(Z, Y, X)`` uint8 or None, and the geometry that undoes it.

    Raises:
        CaseError: the image is all zero, constant, or holds NaN or infinity.
        ValueError: shapes, spacing or affine make no sense.

    Example:
        >>> scan = np.random.default_rng(0).random((40, 48, 6))
        >>> recipe = PreprocessRecipe(spacing_mm=(None, 2.0, 2.0))
        >>> array, _, geometry = preprocess(scan, spacing_mm=(1.0, 1.0, 8.0), recipe=recipe)
        >>> array.shape, restore_label(np.zeros(array.shape[1:], np.uint8), geometry).shape
        ((1, 6, 24, 20), (40, 48, 6))
    """
    if label is not None and label.shape != image.shape:
        raise ValueError(f"Image and label lie on one grid, got the shapes {image.shape} and {label.shape}.")
    whole = find_geometry(image.shape, spacing_mm=spacing_mm, affine=affine)
    oriented = np.ascontiguousarray(whole.orient(image), dtype=np.float32)
    oriented_label = None if label is None else np.ascontiguousarray(whole.orient(label))
    box = _box_of_content(oriented, oriented_label, case_id)
    geometry = whole.with_crop(box, target_spacing_mm=recipe.spacing_mm)
    normalised = _normalise(oriented[geometry.crop], recipe, case_id)[None]
    anisotropic = is_anisotropic(geometry.oriented_spacing_mm, geometry.prepared_spacing_mm)
    array = resample_image(normalised, geometry.prepared_shape, anisotropic=anisotropic)
    if oriented_label is None:
        return array, None, geometry
    return array, resample_label(oriented_label[geometry.crop], geometry.prepared_shape), geometry


def restore_label(label: LabelMap, geometry: Geometry) -> LabelMap:
    """A prepared label map ``(Z, Y, X)`` on its native grid, 0 outside the crop.

    It is the label that was prepared, bit for bit, when the recipe kept the spacing. Otherwise a smooth structure as
    large as a ventricle comes back with a Dice of 0.97 or more. On ACDC at 1.5 mm the mean over every fourth frame was
    0.998 for RV and LV and 0.994 for MYO, the worst 0.984, 0.986 and 0.966.
    """
    _check_shape(label.shape, geometry)
    return _to_native(resample_label(np.asarray(label), geometry.cropped_shape), geometry, outside=0)


def restore_probabilities(probabilities: NDArray[np.floating[Any]], geometry: Geometry) -> Image:
    """Probabilities ``(K, Z, Y, X)`` on the native grid, ``(K, *native)``, resampled linearly.

    Outside the crop the background (class 0) is certain. This holds K native volumes; :func:`restore` holds two.
    """
    _check_shape(probabilities.shape[1:], geometry)
    resampled = resample_linear(np.asarray(probabilities, dtype=np.float32), geometry.cropped_shape)
    native = _to_native(resampled, geometry, outside=0)
    inside = _to_native(np.ones(geometry.cropped_shape, dtype=np.bool_), geometry, outside=0)
    native[0][~inside] = 1.0
    return native


def restore(probabilities: NDArray[np.floating[Any]], geometry: Geometry) -> LabelMap:
    """The most probable class of each native voxel, uint8: resampled linearly first, then decided.

    Probabilities ``(K, Z, Y, X)`` may also be logits or any scores. A tie goes to the smaller class; outside the crop
    is background.

    Raises:
        ValueError: a probability is NaN or infinite, the shape is not the geometry's, or there are over 256 classes.
    """
    scores = np.asarray(probabilities)
    _check_shape(scores.shape[1:], geometry)
    if len(scores) > 256:
        raise ValueError(f"A label map holds at most 256 classes, got {len(scores)}.")
    if not all(np.isfinite(each).all() for each in scores):
        raise ValueError("Probabilities hold NaN or infinity, which no class can be chosen from.")
    return _to_native(resampled_argmax(scores, geometry.cropped_shape), geometry, outside=0)


def _box_of_content(image: Image, label: LabelMap | None, case_id: str) -> Box:
    if not np.isfinite(image).all():
        raise CaseError(case_id, "the image holds NaN or infinite voxels", "repair or leave out the scan")
    content = image != 0
    if not content.any():
        raise CaseError(case_id, "every voxel of the image is 0", "restore or leave out the scan")
    if label is not None:
        content |= label != 0
    start, stop = [], []
    for axis in range(3):
        filled = np.flatnonzero(content.any(axis=tuple(other for other in range(3) if other != axis)))
        start.append(int(filled[0]))
        stop.append(int(filled[-1]) + 1)
    return (start[0], start[1], start[2]), (stop[0], stop[1], stop[2])


def _normalise(image: Image, recipe: PreprocessRecipe, case_id: str) -> Image:
    if recipe.ct_statistics is not None and recipe.normalisation == "ct":
        statistics = recipe.ct_statistics
        clipped = np.clip(image, statistics.low_hu, statistics.high_hu)
        mean, std = statistics.mean_hu, statistics.std_hu
    else:
        low, high = np.percentile(image, recipe.clip_percentiles)
        clipped = np.clip(image, low, high)
        mean, std = float(clipped.mean(dtype=np.float64)), float(clipped.std(dtype=np.float64))
        if high <= low:
            std = 0.0
    if std == 0.0:
        raise CaseError(case_id, f"the image is constant ({image.flat[0]:g}) where it is not 0", "leave out the scan")
    return ((clipped - np.float32(mean)) / np.float32(std)).astype(np.float32)


def _to_native(cropped: NDArray[Any], geometry: Geometry, *, outside: int) -> NDArray[Any]:
    leading = cropped.shape[:-3]
    whole = np.full((*leading, *geometry.oriented_shape), outside, dtype=cropped.dtype)
    whole[(..., *geometry.crop)] = cropped
    return np.ascontiguousarray(geometry.unorient(whole))


def _check_shape(shape: Sequence[int], geometry: Geometry) -> None:
    if tuple(shape) != geometry.prepared_shape:
        raise ValueError(f"The prepared grid is {geometry.prepared_shape}, got an array of {tuple(shape)}.")
