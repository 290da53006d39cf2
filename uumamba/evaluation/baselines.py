"""Baselines without a network: a mean-shape atlas and an intensity threshold."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from uumamba.runtime.errors import require
from uumamba.types import LabelMap, Mask

Image = NDArray[np.floating]

ATLAS_SHAPE = (16, 64, 64)


class MeanShapeAtlas:
    """Mean of the training labels, placed on a new image by relative position.

    Each label is resampled to one grid over its extent and averaged to the share of each structure at each place.
    Structure ``k`` is predicted where its share is the largest of all structures and above a threshold. A grid search
    chooses threshold, smoothing and in-plane scale for the best foreground mean Dice on the training cases. The atlas
    knows the position of the heart, but does not read the image.

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

    def __init__(
        self,
        *,
        thresholds: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5),
        smoothings: Sequence[float] = (0.0, 2.0, 4.0),
        scales: Sequence[float] = (0.8, 1.0, 1.25),
        search_cases: int = 20,
    ) -> None:
        self.thresholds = thresholds
        self.smoothings = smoothings
        self.scales = scales
        self.search_cases = search_cases

    def fit(self, images: Sequence[Image], labels: Sequence[LabelMap]) -> "MeanShapeAtlas":
        """Average the labels and choose the parameters.

        Args:
            images: arrays ``(Z, Y, X)``, or ``(C, Z, Y, X)``; only their shapes are used.
            labels: arrays ``(Z, Y, X)`` with 0 for background and structures 1 to K.

        Raises:
            UsageError: there is no case, numbers or shapes of images and labels differ, or no label has a structure.
        """
        structures = _check_cases(images, labels)
        mean = _mean_shares(labels, structures)
        chosen = _spread_evenly(len(labels), self.search_cases)
        best = -1.0
        for smoothing, scale in product(self.smoothings, self.scales):
            shares = _scale_in_plane(_smooth(mean, smoothing), scale)
            placed = [_place(shares, labels[case].shape) for case in chosen]
            for threshold in self.thresholds:
                predictions = [_largest_share(here, threshold) for here in placed]
                dice = _pooled_dice(predictions, [labels[case] for case in chosen], structures)
                if dice > best:
                    best, self._shares, self._threshold = dice, shares, threshold
                    self.chosen = {"threshold": threshold, "smoothing": smoothing, "scale": scale}
        self.training_dice = best
        return self

    def predict(self, image: Image) -> LabelMap:
        """Predict the label map ``(Z, Y, X)`` of an image of that shape, or of ``(C, Z, Y, X)``."""
        return _largest_share(_place(self._shares, image.shape[-3:]), self._threshold)


class IntensityThreshold:
    """Intensity window of each structure within its region in the training labels, largest component only.

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

    def __init__(
        self,
        *,
        windows: Sequence[tuple[float, float]] = ((0.02, 0.98), (0.05, 0.95), (0.15, 0.85), (0.25, 0.75), (0.15, 1.0)),
        regions: Sequence[float] = (-1.0, 0.02, 0.1, 0.25),
        smoothings: Sequence[float] = (0.0, 1.5),
        search_cases: int = 24,
    ) -> None:
        self.windows = windows
        self.regions = regions
        self.smoothings = smoothings
        self.search_cases = search_cases

    def fit(self, images: Sequence[Image], labels: Sequence[LabelMap]) -> "IntensityThreshold":
        """Choose the parameters of each structure.

        Args:
            images: arrays ``(Z, Y, X)``, or ``(C, Z, Y, X)`` of which the first channel is used.
            labels: arrays ``(Z, Y, X)`` with 0 for background and structures 1 to K.

        Raises:
            UsageError: there is no case, numbers or shapes of images and labels differ, or no label has a structure.
        """
        structures = _check_cases(images, labels)
        self._shares = _mean_shares(labels, structures)
        chosen = _spread_evenly(len(labels), self.search_cases)
        placed = [_place(self._shares, labels[case].shape) for case in chosen]
        truths = [labels[case] for case in chosen]
        best = dict.fromkeys(range(1, structures + 1), -1.0)
        self._parameters: dict[int, tuple[float, float, float, float]] = {}
        for smoothing in self.smoothings:
            smoothed = [_blur_in_plane(_first_channel(images[case]), smoothing) for case in chosen]
            for value in best:
                inside = np.concatenate([image[truth == value] for image, truth in zip(smoothed, truths, strict=True)])
                if not inside.size:
                    continue
                for window, region in product(self.windows, self.regions):
                    low, high = (float(bound) for bound in np.quantile(inside, window))
                    masks = [_claim(*pair, value, low, high, region) for pair in zip(smoothed, placed, strict=True)]
                    dices = [_dice(mask, truth == value) for mask, truth in zip(masks, truths, strict=True)]
                    dice = float(np.mean(dices))
                    if dice > best[value]:
                        best[value] = dice
                        self._parameters[value] = (smoothing, low, high, region)
        return self

    def predict(self, image: Image) -> LabelMap:
        """Predict the label map ``(Z, Y, X)`` of an image of that shape, or of ``(C, Z, Y, X)``."""
        image = _first_channel(image)
        shares = _place(self._shares, image.shape)
        strongest = np.zeros(image.shape, dtype=np.float32)
        label = np.zeros(image.shape, dtype=np.uint8)
        for value, (smoothing, low, high, region) in self._parameters.items():
            claimed = _claim(_blur_in_plane(image, smoothing), shares, value, low, high, region)
            won = claimed & (shares[value - 1] >= strongest)
            label[won] = value
            strongest[won] = shares[value - 1][won]
        return label


def _check_cases(images: Sequence[Image], labels: Sequence[LabelMap]) -> int:
    """Raise unless images and labels fit; return the number of structures."""
    shapes = [image.shape[-3:] for image in images]
    require(
        images and shapes == [label.shape for label in labels],
        "images",
        got=shapes,
        expected=f"the shapes (Z, Y, X) of the labels, {[label.shape for label in labels]}, and at least one",
    )
    structures = max(int(label.max()) for label in labels)
    require(structures, "labels", got="background only", expected="at least one structure")
    return structures


def _mean_shares(labels: Sequence[LabelMap], structures: int) -> NDArray[np.float32]:
    """Compute the share of cases with each structure at each place of the atlas grid, ``(K, *ATLAS_SHAPE)``."""
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


def _place(shares: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Interpolate the shares linearly at the voxels of an image, axis by axis."""
    for axis, length in enumerate(shape, start=1):
        size = shares.shape[axis]
        position = np.clip((np.arange(length) + 0.5) * size / length - 0.5, 0, size - 1)
        below = np.minimum(position.astype(int), max(size - 2, 0))
        weight = (position - below).astype(np.float32).reshape([-1 if other == axis else 1 for other in range(4)])
        above = np.minimum(below + 1, size - 1)
        shares = shares.take(below, axis) * (1 - weight) + shares.take(above, axis) * weight
    return shares


def _smooth(shares: NDArray[np.float32], smoothing: float) -> NDArray[np.float32]:
    return ndimage.gaussian_filter(shares, (0, smoothing / 2, smoothing, smoothing))


def _scale_in_plane(shares: NDArray[np.float32], scale: float) -> NDArray[np.float32]:
    if scale == 1:
        return shares
    matrix = np.array([1, 1, 1 / scale, 1 / scale])
    centre = (np.array(shares.shape) - 1) / 2
    return ndimage.affine_transform(shares, matrix, offset=centre * (1 - matrix), order=1)


def _largest_share(shares: NDArray[np.float32], threshold: float) -> LabelMap:
    winner = shares.argmax(axis=0)
    return np.where(shares.max(axis=0) > threshold, winner + 1, 0).astype(np.uint8)


def _claim(image: Image, shares: NDArray[np.float32], value: int, low: float, high: float, region: float) -> Mask:
    return _largest_component((image >= low) & (image <= high) & (shares[value - 1] > region))


def _largest_component(mask: Mask) -> Mask:
    components, number = ndimage.label(mask)
    if number < 2:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return components == sizes.argmax()


def _first_channel(image: Image) -> Image:
    return np.asarray(image[0] if image.ndim == 4 else image, dtype=np.float32)


def _blur_in_plane(image: Image, smoothing: float) -> Image:
    return ndimage.gaussian_filter(image, (0, smoothing, smoothing)) if smoothing else image


def _pooled_dice(predictions: Sequence[LabelMap], truths: Sequence[LabelMap], structures: int) -> float:
    """Compute the mean Dice over all pairs of case and structure in which either mask has voxels.

    A rare structure has less weight than in :func:`uumamba.evaluation.mean_dice`; this only ranks the points of a grid.
    """
    pairs = [
        (prediction == value, truth == value)
        for value in range(1, structures + 1)
        for prediction, truth in zip(predictions, truths, strict=True)
    ]
    return float(np.mean([_dice(*pair) for pair in pairs if pair[0].any() or pair[1].any()]))


def _dice(prediction: Mask, truth: Mask) -> float:
    total = int(prediction.sum()) + int(truth.sum())
    return 2 * int((prediction & truth).sum()) / total if total else 1.0


def _spread_evenly(count: int, most: int) -> list[int]:
    """Return at most so many evenly spread indices."""
    number = min(count, most)
    return [position * count // number for position in range(number)]
