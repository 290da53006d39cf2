"""Baselines without a network: a mean-shape atlas and an intensity threshold."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uumamba.evaluation.means import moments
from uumamba.metrics import dice_coefficient
from uumamba.runtime.errors import require
from uumamba.types import LabelMap, Mask

ImageArray = NDArray[np.floating]

ATLAS_SHAPE = (16, 64, 64)


@dataclass(kw_only=True, eq=False)
class MeanShapeAtlas:
    """Mean of the training labels, resampled to the grid of an image.

    Each label is resampled to one atlas grid over its extent. Their mean is the share of cases with each structure at
    each voxel of the atlas. Structure ``k`` is predicted where its share is the largest of all structures and above a
    threshold. A grid search chooses threshold, smoothing and in-plane scale for the best foreground mean Dice on the
    training cases. The atlas knows the position of the heart, but does not read the image.

    Args:
        thresholds: shares to try.
        smoothings: standard deviations of a Gaussian on the atlas grid to try.
        scales: in-plane magnifications of the atlas about its centre to try.
        search_cases: largest number of training cases, evenly spread, in the grid search.

    Example:
        >>> label = np.zeros((4, 32, 32), np.uint8)
        >>> label[:, 8:24, 8:24] = 1
        >>> atlas = MeanShapeAtlas().fit([np.zeros(label.shape)], [label])
        >>> bool((atlas.predict(np.zeros((5, 64, 64)))[:, 16:48, 16:48] == 1).all())
        True
    """

    thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5)
    smoothings: Sequence[float] = (0.0, 2.0, 4.0)
    scales: Sequence[float] = (0.8, 1.0, 1.25)
    search_cases: int = 20

    def fit(self, images: Sequence[ImageArray], labels: Sequence[LabelMap]) -> "MeanShapeAtlas":
        """Average the labels and choose the parameters.

        Args:
            images: arrays ``(Z, Y, X)``, or ``(C, Z, Y, X)``; only their shapes are used.
            labels: arrays ``(Z, Y, X)`` with 0 for background and structures 1 to K.

        Raises:
            UsageError: there is no case, numbers or shapes of images and labels differ, or no label has a structure.
        """
        structures = _count_structures(images, labels)
        mean = _compute_mean_shares(labels, structures)
        searched = [labels[case] for case in _spread_evenly(len(labels), self.search_cases)]
        self.training_dice = -1.0
        for smoothing, scale in product(self.smoothings, self.scales):
            smoothed = ndimage.gaussian_filter(mean, (0, smoothing / 2, smoothing, smoothing))
            shares = _scale_in_plane(smoothed, scale)
            resampled = [_resample_shares(shares, label.shape) for label in searched]
            for threshold in self.thresholds:
                predictions = [_select_largest_share(each, threshold) for each in resampled]
                dice = _compute_pooled_dice(predictions, searched, structures)
                if dice > self.training_dice:
                    self.training_dice, self._shares = dice, shares
                    self.chosen = {"threshold": threshold, "smoothing": smoothing, "scale": scale}
        return self

    def predict(self, image: ImageArray) -> LabelMap:
        """Predict a label map ``(Z, Y, X)``.

        Args:
            image: array ``(Z, Y, X)``, or ``(C, Z, Y, X)``; only its shape is used.
        """
        return _select_largest_share(_resample_shares(self._shares, image.shape[-3:]), self.chosen["threshold"])


@dataclass(kw_only=True, eq=False)
class IntensityThreshold:
    """Largest component of each structure's intensity window within its region.

    For each structure a grid search over training cases chooses the window (between two quantiles of the structure's
    intensities), the region (where the structure's share in the mean label exceeds a threshold), and the width of a
    Gaussian filter, for the best Dice of that structure. Of several structures at one voxel, the one with the largest
    share is predicted. All images need the same normalisation, as prepared images have.

    Args:
        windows: pairs of quantiles to try.
        regions: thresholds of the share to try; 0 is every place of the structure in a label, negative is everywhere.
        smoothings: standard deviations, in voxels in plane, to try.
        search_cases: largest number of training cases, evenly spread, in the grid search.

    Example:
        >>> label = np.zeros((4, 32, 32), np.uint8)
        >>> label[:, 8:24, 8:24] = 1
        >>> threshold = IntensityThreshold().fit([label * 1.0], [label])
        >>> bool((threshold.predict(label * 1.0) == label).all())
        True
    """

    windows: Sequence[tuple[float, float]] = ((0.02, 0.98), (0.05, 0.95), (0.15, 0.85), (0.25, 0.75), (0.15, 1.0))
    regions: Sequence[float] = (-1.0, 0.02, 0.1, 0.25)
    smoothings: Sequence[float] = (0.0, 1.5)
    search_cases: int = 24

    def fit(self, images: Sequence[ImageArray], labels: Sequence[LabelMap]) -> "IntensityThreshold":
        """Choose the parameters of each structure.

        Args:
            images: arrays ``(Z, Y, X)``, or ``(C, Z, Y, X)`` of which the first channel is used.
            labels: arrays ``(Z, Y, X)`` with 0 for background and structures 1 to K.

        Raises:
            UsageError: there is no case, numbers or shapes of images and labels differ, or no label has a structure.
        """
        structures = _count_structures(images, labels)
        self._shares = _compute_mean_shares(labels, structures)
        searched = _spread_evenly(len(labels), self.search_cases)
        resampled = [_resample_shares(self._shares, labels[case].shape) for case in searched]
        best = dict.fromkeys(range(1, structures + 1), -1.0)
        self._parameters: dict[int, tuple[float, float, float, float]] = {}
        for smoothing in self.smoothings:
            smoothed = [_smooth_first_channel(images[case], smoothing) for case in searched]
            for value in best:
                masks = [labels[case] == value for case in searched]
                inside = np.concatenate([image[mask] for image, mask in zip(smoothed, masks, strict=True)])
                if not inside.size:
                    continue
                for window, region in product(self.windows, self.regions):
                    low, high = (float(bound) for bound in np.quantile(inside, window))
                    dices = [
                        dice_coefficient(_segment(image, shares[value - 1], low, high, region), mask)
                        for image, shares, mask in zip(smoothed, resampled, masks, strict=True)
                    ]
                    dice = float(np.mean(np.nan_to_num(dices, nan=1.0)))
                    if dice > best[value]:
                        best[value] = dice
                        self._parameters[value] = (smoothing, low, high, region)
        return self

    def predict(self, image: ImageArray) -> LabelMap:
        """Predict a label map ``(Z, Y, X)``.

        Args:
            image: array ``(Z, Y, X)``, or ``(C, Z, Y, X)`` of which the first channel is used.
        """
        label = np.zeros(image.shape[-3:], dtype=np.uint8)
        largest = np.zeros(label.shape, dtype=np.float32)
        shares = _resample_shares(self._shares, label.shape)
        for value, (smoothing, low, high, region) in self._parameters.items():
            share = shares[value - 1]
            mask = _segment(_smooth_first_channel(image, smoothing), share, low, high, region) & (share >= largest)
            label[mask] = value
            largest[mask] = share[mask]
        return label


def _count_structures(images: Sequence[ImageArray], labels: Sequence[LabelMap]) -> int:
    """Count the structures; raise unless images and labels have the same shapes."""
    shapes = [image.shape[-3:] for image in images]
    require(
        images and shapes == [label.shape for label in labels],
        "images",
        got=shapes,
        expected=f"at least one image, with the shapes (Z, Y, X) of the labels, {[label.shape for label in labels]}",
    )
    structures = max(int(label.max()) for label in labels)
    require(structures, "labels", got="background only", expected="at least one structure")
    return structures


def _compute_mean_shares(labels: Sequence[LabelMap], structures: int) -> NDArray[np.float32]:
    """Compute each structure's share of cases on the atlas grid, ``(K, *ATLAS_SHAPE)``."""
    total = np.zeros((structures, *ATLAS_SHAPE), dtype=np.float32)
    for label in labels:
        nearest = [
            np.minimum(((np.arange(size) + 0.5) * length / size).astype(int), length - 1)
            for size, length in zip(ATLAS_SHAPE, label.shape, strict=True)
        ]
        sampled = label[np.ix_(*nearest)]
        for value in range(1, structures + 1):
            total[value - 1] += sampled == value
    return total / np.float32(len(labels))


def _resample_shares(shares: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Interpolate the shares linearly at the voxels of an image."""
    for axis, length in enumerate(shape, start=1):
        size = shares.shape[axis]
        position = np.clip((np.arange(length) + 0.5) * size / length - 0.5, 0, size - 1)
        below = np.minimum(position.astype(int), max(size - 2, 0))
        weight = (position - below).astype(np.float32).reshape([-1 if other == axis else 1 for other in range(4)])
        above = np.minimum(below + 1, size - 1)
        shares = shares.take(below, axis) * (1 - weight) + shares.take(above, axis) * weight
    return shares


def _scale_in_plane(shares: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    matrix = np.array([1, 1, 1 / scale, 1 / scale])
    centre = (np.array(shares.shape) - 1) / 2
    return ndimage.affine_transform(shares, matrix, offset=centre * (1 - matrix), order=1)


def _select_largest_share(shares: NDArray[np.float32], threshold: float) -> LabelMap:
    return np.where(shares.max(axis=0) > threshold, shares.argmax(axis=0) + 1, 0).astype(np.uint8)


def _segment(image: ImageArray, share: NDArray[np.float32], low: float, high: float, region: float) -> Mask:
    """Return the largest component of an intensity window within a region."""
    mask = (image >= low) & (image <= high) & (share > region)
    components, number = ndimage.label(mask)
    if number < 2:
        return mask
    return components == np.bincount(components[mask]).argmax()


def _smooth_first_channel(image: ImageArray, smoothing: float) -> ImageArray:
    channel = np.asarray(image[0] if image.ndim == 4 else image, dtype=np.float32)
    return ndimage.gaussian_filter(channel, (0, smoothing, smoothing))


def _compute_pooled_dice(predictions: Sequence[LabelMap], labels: Sequence[LabelMap], structures: int) -> float:
    """Compute the mean Dice over all pairs of case and structure.

    A pair of empty masks is left out. A rare structure has less weight than in :func:`uumamba.evaluation.mean_dice`;
    this mean only ranks the points of a grid.
    """
    dices = (
        dice_coefficient(prediction == value, label == value)
        for value in range(1, structures + 1)
        for prediction, label in zip(predictions, labels, strict=True)
    )
    return moments(dices).mean or 0.0


def _spread_evenly(count: int, most: int) -> list[int]:
    """Return at most ``most`` evenly spread indices below ``count``."""
    number = min(count, most)
    return [position * count // number for position in range(number)]
