"""Promises of all metrics: empty masks, refused input, and invariance to axis order, flips and padding."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from uumamba.metrics import (
    average_surface_distance,
    betti_errors,
    betti_numbers,
    centreline_length_error,
    centreline_length_mm,
    cl_dice,
    dice_coefficient,
    hausdorff_distance,
    normalized_surface_dice,
    skeletonize,
    surface_distances,
    vessel_scores,
    volume_ml,
)

SPACING_MM = (0.7, 1.5, 10.0)
OVERLAPS = {"dice": dice_coefficient, "cl_dice": cl_dice}
SURFACES = {
    "hd95": hausdorff_distance,
    "hd": partial(hausdorff_distance, percentile=100),
    "assd": average_surface_distance,
    "nsd": partial(normalized_surface_dice, tolerance_mm=2.0),
}
PAIRS: dict[str, Callable[..., Any]] = {
    **OVERLAPS,
    **SURFACES,
    "surface distances": surface_distances,
    "betti errors": betti_errors,
    "length error": centreline_length_error,
    "vessel scores": vessel_scores,
}
SINGLES: dict[str, Callable[..., Any]] = {
    "volume": volume_ml,
    "length": centreline_length_mm,
    "betti numbers": betti_numbers,
    "skeleton": skeletonize,
}
WITHOUT_SPACING = {"dice", "cl_dice", "betti errors", "betti numbers", "skeleton"}
OF_TOPOLOGY = {"cl_dice", "betti errors", "length error", "vessel scores", "length", "betti numbers", "skeleton"}


def spacing(name: str, spacing_mm: tuple[float, ...]) -> dict[str, Any]:
    return {} if name in WITHOUT_SPACING else {"spacing_mm": spacing_mm}


def two_blobs() -> tuple[np.ndarray, np.ndarray]:
    """Two ellipsoids with ragged borders that overlap in part."""
    shape = (14, 12, 9)
    noise = np.random.default_rng(0).normal(scale=0.1, size=(2, *shape))
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    offset = np.array([0.25, 0.0, -0.1]).reshape(3, 1, 1, 1)
    return np.linalg.norm(grid, axis=0) + noise[0] < 0.6, np.linalg.norm(grid - offset, axis=0) + noise[1] < 0.55


@pytest.mark.parametrize("name", [*OVERLAPS, *SURFACES])
def test_equal_masks_are_perfect_and_a_total_miss_is_worst(name: str) -> None:
    metric, mask = PAIRS[name], two_blobs()[0]
    empty, own = np.zeros_like(mask), spacing(name, SPACING_MM)
    best, worst = (0.0, math.inf) if name in ("hd95", "hd", "assd") else (1.0, 0.0)
    assert metric(mask, mask, **own) == best
    assert metric(mask, empty, **own) == metric(empty, mask, **own) == worst
    assert math.isnan(metric(empty, empty, **own))


@pytest.mark.parametrize("name", [*OVERLAPS, *SURFACES])
def test_swapping_prediction_and_label_changes_nothing(name: str) -> None:
    prediction, label = two_blobs()
    swapped = PAIRS[name](label, prediction, **spacing(name, SPACING_MM))
    assert PAIRS[name](prediction, label, **spacing(name, SPACING_MM)) == pytest.approx(swapped, rel=1e-12)


@pytest.mark.parametrize("name", ["dice", *SURFACES, "betti errors"])
def test_axis_order_and_empty_space_around_both_masks_change_nothing(name: str) -> None:
    prediction, label = two_blobs()
    expected = PAIRS[name](prediction, label, **spacing(name, SPACING_MM))
    for axes in itertools.permutations(range(3)):
        own = spacing(name, tuple(SPACING_MM[axis] for axis in axes))
        permuted = (np.pad(mask.transpose(axes), ((1, 0), (0, 2), (3, 3))) for mask in (prediction, label))
        assert PAIRS[name](*permuted, **own) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [*PAIRS, *SINGLES])
def test_wrong_masks_and_spacings_are_refused(name: str, refused: Callable[..., Any]) -> None:
    is_pair = name in PAIRS
    metric, first = (PAIRS | SINGLES)[name], "prediction" if is_pair else "mask"
    own, mask = spacing(name, (1.0, 1.0)), np.ones((2, 2), bool)

    def call(given: Any, **options: Any) -> Any:
        return metric(*([given, mask] if is_pair else [given]), **options)

    with refused(first, got=np.dtype("uint8")):
        call(mask.astype(np.uint8), **own)
    with refused(first, got="list"):
        call([True, False], **own)
    if is_pair:
        with refused("prediction", got=(2, 3)):
            call(np.ones((2, 3), bool), **own)
        with refused("label", got=np.dtype("float64")):
            metric(mask, mask.astype(float), **own)
    if name in OF_TOPOLOGY:
        line = np.ones(4, bool)
        with refused(first, got=(4,)):
            metric(*([line, line] if is_pair else [line]), **spacing(name, (1.0,)))
    for lengths in ((1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, math.inf)):
        if own:
            with refused("spacing_mm", got=lengths):
                call(mask, spacing_mm=lengths)


@pytest.mark.parametrize(
    ("call", "key", "got"),
    [
        *((hausdorff_distance, "percentile", each) for each in (-1, 100.1)),
        (normalized_surface_dice, "tolerance_mm", -1.0),
    ],
)
def test_options_out_of_range_are_refused(call: Callable[..., float], key: str, got: float, refused: Any) -> None:
    mask = np.ones(3, bool)
    with refused(key, got=got):
        call(mask, mask, spacing_mm=(1.0,), **{key: got})
