"""Label schemes of manifests and checkpoints."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uumamba.data.case import Manifest
from uumamba.data.label_scheme import LabelScheme
from uumamba.data.preprocess import PreprocessRecipe, preprocess, restore, restore_probabilities
from uumamba.runtime.errors import UsageError
from uumamba.runtime.painting import paint_regions, select_values

PLAIN = LabelScheme({"oedema": 7, "necrosis": 500, "enhancing": 3})
REGIONS = {"whole": (3, 7, 500), "core": (3, 500), "enhancing": (3,)}
OVERLAPPING = LabelScheme(
    PLAIN.structures, regions=REGIONS, regions_class_order=(7, 500, 3), ignore_value=9, colours={"core": "#ff0000"}
)


def test_structures_are_targets_of_one_class_with_background() -> None:
    assert PLAIN.target_classes == {"oedema": (2,), "necrosis": (3,), "enhancing": (1,)}
    assert (PLAIN.outputs, PLAIN.membership, PLAIN.painted, PLAIN.ignore_label) == (4, None, None, None)
    assert PLAIN.to_json() == {"structures": dict(PLAIN.structures)}, "checkpoints are those of earlier versions"


def test_regions_are_outputs_of_their_classes() -> None:
    assert OVERLAPPING.target_classes == {"whole": (1, 2, 3), "core": (1, 3), "enhancing": (1,)}
    assert (OVERLAPPING.outputs, OVERLAPPING.painted, OVERLAPPING.ignore_label) == (3, (2, 3, 1), 255)
    # Class 1 is in all regions, class 2 (oedema) only in the whole, class 3 (necrosis) also in the core.
    assert np.array(OVERLAPPING.membership).astype(int).tolist() == [[0, 0, 0], [1, 1, 1], [1, 0, 0], [1, 1, 0]]


@pytest.mark.parametrize("scheme", [PLAIN, OVERLAPPING])
def test_a_scheme_is_the_same_from_manifest_and_checkpoint(scheme: LabelScheme) -> None:
    stored = scheme.to_json()
    assert LabelScheme.from_json(stored | {"run": {}, "fold": "0"}) == scheme
    fields = {name: getattr(scheme, name) for name in vars(scheme)}
    assert Manifest("toy", "MR", cases=(), **fields).labels == scheme


@pytest.mark.parametrize(
    "change", [{"regions": {"a": [8]}}, {"structures": {"a": "1"}}, {"regions_class_order": [7]}, {"regions": [1]}]
)
def test_a_checkpoint_with_other_labels_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((ValueError, UsageError), match=r"region|structures|valid"):
        LabelScheme.from_json(OVERLAPPING.to_json() | change)


def test_regions_are_restored_by_threshold_and_order_without_background() -> None:
    scan = np.zeros((12, 16, 4))
    scan[2:10, 2:14, :] = np.random.default_rng(0).random((8, 12, 4)) + 1
    array, _, geometry = preprocess(scan, spacing_mm=(1, 1, 4), recipe=PreprocessRecipe((None, 2.0, 2.0)))
    generator = np.random.default_rng(1)
    probabilities = generator.random((2, *array.shape[1:])).astype(np.float32)
    native = restore_probabilities(probabilities, geometry, has_background=False)
    assert native.shape == (2, *scan.shape)
    assert not native[:, :2].any(), "outside the crop"
    label = restore(probabilities, geometry, painted=(3, 1))
    assert np.array_equal(label, np.where(native[1] > 0.5, 1, np.where(native[0] > 0.5, 3, 0)))
    assert replace(PLAIN, ignore_value=1).ignore_label == 255


@pytest.mark.parametrize(
    ("regions", "order"),
    [
        ({"core": (2,), "whole": (1, 2)}, (2, 1)),  # the whole is painted over its core
        ({"whole": (1, 2), "core": (2,)}, (2, 1)),  # a value of the other region
        ({"left": (1, 3), "right": (2, 3)}, (1, 2)),  # the overlap becomes the right one alone
    ],
)
def test_regions_that_are_not_the_same_after_painting_are_refused(
    regions: dict[str, tuple[int, ...]], order: tuple[int, ...], refused: Any
) -> None:
    structures = {name: value for value, name in enumerate("abc"[: len({*sum(regions.values(), ())})], start=1)}
    with refused("toy: regions_class_order", got=list(order)):
        Manifest("toy", "MR", structures, (), regions=regions, regions_class_order=order)


@given(st.permutations([1, 2, 3]))
def test_painted_regions_of_accepted_schemes_are_the_true_regions(order: list[int]) -> None:
    regions = {"whole": (1, 2, 3), "core": (2, 3), "middle": (3,)}
    try:
        manifest = Manifest(
            "toy", "MR", {"a": 1, "b": 2, "c": 3}, (), regions=regions, regions_class_order=tuple(order)
        )
    except UsageError:
        assert order != [1, 2, 3]
        return
    true = np.array([0, 1, 2, 3])
    found = paint_regions([select_values(true, values) for values in regions.values()], manifest.regions_class_order)
    assert all(np.array_equal(select_values(found, each), select_values(true, each)) for each in regions.values())
