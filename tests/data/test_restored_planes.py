"""Restoring plane after plane, compared with restoring of whole volumes."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from uumamba.data.order_statistics import find_percentiles
from uumamba.data.preprocess import Preprocessing, PreprocessRecipe, preprocess, restore, restore_probabilities
from uumamba.data.restored_planes import restore_planes

SPACING_MM = (1.2, 1.0, 1.5)
SIGNED_ORDERS = [(order, signs) for order in itertools.permutations(range(3)) for signs in ((1, 1, 1), (-1, 1, -1))]


def make_affine(order: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, direction in enumerate(order):
        affine[direction, axis] = signs[axis] * SPACING_MM[axis]
    return affine


@pytest.mark.parametrize("painted", [None, (2, 1, 3)])
@pytest.mark.parametrize("target_mm", [(None, None, None), (1.0, 1.3, 0.7), (2.5, None, None), (None, 0.4, 2.0)])
@pytest.mark.parametrize("strips", [1, 3])
def test_planes_are_restored_as_whole_volumes_in_all_axis_orders(painted: Any, target_mm: Any, strips: int) -> None:
    generator = np.random.default_rng(0)
    scan = generator.normal(size=(14, 11, 13)).astype(np.float32)
    scan[:2] = scan[:, -1:] = 0
    for order, signs in SIGNED_ORDERS:
        _, _, geometry = preprocess(
            scan, spacing_mm=SPACING_MM, affine=make_affine(order, signs), recipe=PreprocessRecipe(spacing_mm=target_mm)
        )
        maps = generator.integers(0, 4, (3, *geometry.prepared_shape)).astype(np.float32) / 4  # with ties
        reused = np.empty_like(maps[:, 0])

        def predict(rows: tuple[int, int] | None, maps: Any = maps, reused: Any = reused) -> Iterator[np.ndarray]:
            for z in range(maps.shape[1]):
                reused[:] = maps[:, z]
                yield reused if rows is None else reused[:, slice(*rows)]

        label, found = restore_planes(predict, geometry, strips=strips, painted=painted, probabilities=True)
        assert np.array_equal(label, restore(maps, geometry, painted=painted))
        assert np.array_equal(found, restore_probabilities(maps, geometry, has_background=painted is None))
        assert painted or np.array_equal(label, found.argmax(axis=0)), "of equal classes the first"


def test_planes_of_several_channels_equal_the_image_in_memory() -> None:
    scan = np.random.default_rng(0).normal(size=(2, 14, 11, 13))
    recipe = PreprocessRecipe(spacing_mm=(None, 1.5, 1.5))
    array, _, _ = preprocess(scan, spacing_mm=SPACING_MM, recipe=recipe)
    planes = Preprocessing(scan, spacing_mm=SPACING_MM, recipe=recipe).image_planes()
    assert np.array_equal(np.stack(list(planes), axis=1), array)


@pytest.mark.parametrize("percentiles", [(0.5, 99.5), (0, 100), (33.3, 50)])
def test_percentiles_equal_numpys_bit_for_bit(percentiles: tuple[float, float]) -> None:
    generator = np.random.default_rng(0)
    for size in (1, 2, 7, 1000, 4001):
        normal = generator.normal(size=size)
        for image in (normal, normal.astype(np.float32), (900 * normal).astype(np.int16), normal > 0, -0.0 * normal):
            expected = np.percentile(image.astype(np.float32), percentiles)
            assert np.array_equal(find_percentiles(image, percentiles), expected)
