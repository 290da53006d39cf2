"""Left and right structures, and the prepared axis between them."""

from typing import Any

import numpy as np
import pytest

from data_prep.aorta import MIRROR_PAIRS, SIDES, STRUCTURES
from uumamba.data.case import Manifest
from uumamba.data.geometry import find_geometry
from uumamba.data.sides import left_right_axes, left_right_axis, read_sides


def manifest(**extra: Any) -> Manifest:
    return Manifest("toy", "CT", {"R": 1, "L": 2, "LCC": 3}, (), extra=extra)


def test_the_sides_of_the_aorta_data_set_are_read() -> None:
    extra = {"sides": dict(SIDES), "mirror_pairs": [list(pair) for pair in MIRROR_PAIRS]}
    sides = read_sides(Manifest("AortaSeg24", "CT", dict(STRUCTURES), (), extra=extra))
    assert sides is not None
    assert sides.pairs == ((15, 16), (18, 19), (20, 21), (22, 23))  # renal, 10, internal iliac, 11; right, left
    assert set(sides.unpaired) == {"LCC", "LSA"}
    assert len(sides.structures) == 10


def test_a_manifest_without_sides_gives_none() -> None:
    assert read_sides(manifest()) is None
    assert read_sides(manifest(sides={}, mirror_pairs=[])) is None


@pytest.mark.parametrize(
    "extra",
    [
        {"sides": {"spleen": "left"}},
        {"mirror_pairs": [["R", "spleen"]]},
        {"mirror_pairs": [["R", "L"], ["L", "LCC"]]},
        {"mirror_pairs": [["R", "L", "LCC"]]},
    ],
)
def test_sides_of_unknown_structures_or_named_twice_are_refused(extra: dict[str, Any], refused: Any) -> None:
    with refused("toy: sides, mirror_pairs"):
        read_sides(manifest(**extra))


@pytest.mark.parametrize("native", [(0, 1, 2), (2, 0, 1), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
@pytest.mark.parametrize(("thick", "expected"), [(2, 2), (1, 2), (0, 0)])
def test_the_axis_is_found_for_every_storage_and_slice_orientation(
    native: tuple[int, ...], signs: tuple[int, ...], thick: int, expected: int
) -> None:
    # Through-plane first, then S, A, R: only for sagittal slices is the left-right axis first.
    spacing_mm = np.ones(3)
    spacing_mm[list(native).index(thick)] = 4.0
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, canonical in enumerate(native):
        affine[canonical, axis] = signs[axis] * spacing_mm[axis]
    geometry = find_geometry((5, 6, 7), spacing_mm=spacing_mm, affine=affine)
    axis = left_right_axis(geometry)
    assert axis == expected
    # Reference: an array of positions between left and right varies only along that prepared axis.
    counting = np.moveaxis(np.broadcast_to(np.arange(3)[:, None, None], (3, 4, 5)), 0, list(native).index(0))
    varies = [each for each in range(3) if np.diff(geometry.orient(counting), axis=each).any()]
    assert varies == [axis]


def test_scans_of_different_slice_orientations_have_several_axes() -> None:
    axial, sagittal = (find_geometry((5, 6, 7), spacing_mm=spacing) for spacing in ((1, 1, 3), (3, 1, 1)))
    assert left_right_axes([axial, axial]) == (2,)
    assert left_right_axes([axial, sagittal]) == (0, 2)
