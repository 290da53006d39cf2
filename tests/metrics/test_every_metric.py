"""Promises of all metrics: empty masks, invariances and refused input."""

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


Blobs = tuple[np.ndarray, np.ndarray]


def spacing(name: str, spacing_mm: tuple[float, ...] = SPACING_MM) -> dict[str, Any]:
    return {} if name in WITHOUT_SPACING else {"spacing_mm": spacing_mm}


@pytest.mark.parametrize("name", [*OVERLAPS, *SURFACES])
def test_equal_masks_have_the_best_and_a_total_miss_the_worst_value(name: str, two_blobs: Blobs) -> None:
    metric, mask = PAIRS[name], two_blobs[0]
    empty, own = np.zeros_like(mask), spacing(name)
    best, worst = (0.0, math.inf) if name in ("hd95", "hd", "assd") else (1.0, 0.0)
    assert metric(mask, mask, **own) == best
    assert metric(mask, empty, **own) == metric(empty, mask, **own) == worst
    assert math.isnan(metric(empty, empty, **own))


@pytest.mark.parametrize("name", [*OVERLAPS, *SURFACES])
def test_swapping_prediction_and_label_changes_nothing(name: str, two_blobs: Blobs) -> None:
    swapped = PAIRS[name](*reversed(two_blobs), **spacing(name))
    assert PAIRS[name](*two_blobs, **spacing(name)) == pytest.approx(swapped, rel=1e-12)


@pytest.mark.parametrize("name", [*OVERLAPS, *SURFACES, "betti errors", "length error"])
def test_empty_space_around_both_masks_changes_nothing(name: str, two_blobs: Blobs) -> None:
    padded = (np.pad(mask, ((1, 0), (0, 2), (3, 3))) for mask in two_blobs)
    assert PAIRS[name](*padded, **spacing(name)) == PAIRS[name](*two_blobs, **spacing(name))


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("name", ["dice", *SURFACES, "betti errors"])
def test_the_order_of_axes_changes_nothing(name: str, axes: tuple[int, ...], two_blobs: Blobs) -> None:
    permuted = (mask.transpose(axes) for mask in two_blobs)
    found = PAIRS[name](*permuted, **spacing(name, tuple(SPACING_MM[axis] for axis in axes)))
    assert found == pytest.approx(PAIRS[name](*two_blobs, **spacing(name)), rel=1e-12)


@pytest.mark.parametrize("name", ["hd95", "hd", "assd"])
def test_distances_scale_with_the_spacing(name: str, two_blobs: Blobs) -> None:
    once, twice = (PAIRS[name](*two_blobs, spacing_mm=[k * mm for mm in SPACING_MM]) for k in (1, 2))
    assert twice == pytest.approx(2 * once, rel=1e-12)


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
