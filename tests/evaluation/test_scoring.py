"""Scores of vessels and of left/right partners, on shapes counted by hand."""

import math
from typing import Any

import numpy as np
import pytest

from uumamba.evaluation import EvaluationPair, ScoreRow, evaluate

SPACING_MM = (0.5, 0.5, 2.0)
VESSEL = {"coronary": 1}


def score(prediction: np.ndarray, label: np.ndarray) -> ScoreRow:
    pair = EvaluationPair("a", "a", prediction.astype(np.uint8), label.astype(np.uint8), SPACING_MM)
    scores = evaluate([pair], structures=VESSEL, vessel_structures=["coronary"])
    assert scores.trees == (), "one vessel is its own tree"
    return scores.rows[0]


def betti(row: ScoreRow) -> tuple[float | None, ...]:
    return row.betti0_error, row.betti1_error, row.betti2_error


def straight_tube(*, slices: int) -> np.ndarray:
    """Tube of 3 x 3 voxels from the second slice on."""
    tube = np.zeros((9, 9, 24), bool)
    tube[3:6, 3:6, 1 : 1 + slices] = True
    return tube


def test_a_tube_that_stops_early_has_a_negative_length_error() -> None:
    # 21 slices are 40 mm from centre to centre, 16 are 30 mm.
    row = score(straight_tube(slices=16), straight_tube(slices=21))
    assert row.length_error == pytest.approx(-10 / 40)
    assert betti(row) == (0.0, 0.0, 0.0)
    # Tubes of 3 x 3 voxels thin to their middle lines: 16 of 16 voxels are in the label, 16 of 21 in the prediction.
    assert row.cl_dice == pytest.approx(2 * (16 / 21) / (1 + 16 / 21))


def test_missed_arms_of_a_branch_are_a_length_error_and_no_betti_error() -> None:
    # A stem of 10 voxels, 9 steps of 2 mm, forks into two arms of 8 oblique steps of 0.5 and 2 mm.
    stem = np.zeros((24, 9, 24), bool)
    stem[12, 4, 1:11] = True
    branched, steps = stem.copy(), np.arange(1, 9)
    branched[12 - steps, 4, 10 + steps] = branched[12 + steps, 4, 10 + steps] = True
    stem_mm, arm_mm = 9 * 2.0, 8 * math.hypot(0.5, 2.0)
    row = score(stem, branched)
    assert row.length_error == pytest.approx(-2 * arm_mm / (stem_mm + 2 * arm_mm))
    assert betti(row) == (0.0, 0.0, 0.0)
    # All 10 voxels of the prediction are right, 10 of the label's 26 are found.
    assert row.cl_dice == pytest.approx(2 * (10 / 26) / (1 + 10 / 26))


@pytest.mark.parametrize(
    ("hole", "errors"),
    [
        (np.s_[:, :, 10], (1.0, 0.0, 0.0)),  # two parts
        (np.s_[4, :, 10], (0.0, 1.0, 0.0)),  # a tunnel
        (np.s_[4, 4, 10], (0.0, 0.0, 1.0)),  # a cavity
    ],
)
def test_one_part_tunnel_or_cavity_too_many_is_a_betti_error(hole: Any, errors: tuple[float, ...]) -> None:
    tube, other = straight_tube(slices=21), straight_tube(slices=21)
    other[hole] = False
    assert betti(score(other, tube)) == betti(score(tube, other)) == errors


def test_a_missed_a_spurious_and_an_absent_vessel_have_the_scores_of_an_empty_mask() -> None:
    tube, nothing = straight_tube(slices=21), np.zeros((9, 9, 24), bool)
    missed, invented, absent = score(nothing, tube), score(tube, nothing), score(nothing, nothing)
    assert (missed.cl_dice, betti(missed), missed.length_error) == (0.0, (1.0, 0.0, 0.0), -1.0)
    assert (invented.cl_dice, betti(invented), invented.length_error) == (0.0, (1.0, 0.0, 0.0), math.inf)
    assert all(math.isnan(value) for value in (absent.cl_dice, *betti(absent), absent.length_error))
    assert all(row.is_vessel for row in (missed, invented, absent))


def test_several_vessels_are_also_scored_as_one_tree_in_separate_rows() -> None:
    # Two zones of one tube; the prediction puts their border five slices too far on.
    label = straight_tube(slices=21).astype(np.uint8)
    prediction = label.copy()
    label[:, :, 11:] *= 2
    prediction[:, :, 16:] *= 2
    pair = EvaluationPair("a", "p", prediction, label, SPACING_MM, group="B")
    zones = {"Zone3": 1, "Zone4": 2, "Lung": 3}
    scores = evaluate([pair], structures=zones, vessel_structures=["Zone3", "Zone4"])
    (tree,) = scores.trees
    assert (tree.structure, tree.case_id, tree.patient_id, tree.group) == ("whole tree", "a", "p", "B")
    assert (tree.dice, tree.cl_dice, betti(tree), tree.length_error) == (1.0, 1.0, (0.0, 0.0, 0.0), 0.0)
    assert [row.structure for row in scores.rows] == list(zones)
    assert [row.is_vessel for row in scores.rows] == [True, True, False]
    assert scores.rows[0].dice == 2 * 10 / (10 + 15)


SIDES = {"RenalR": 1, "RenalL": 2, "SMA": 3}
PAIRS = [("RenalR", "RenalL")]


def renal(right: slice, left: slice) -> np.ndarray:
    labels = np.zeros((10, 4, 4), np.uint8)
    labels[right, 1, 1], labels[left, 1, 1], labels[5, :, 3] = 1, 2, 3
    return labels


@pytest.mark.parametrize(
    ("prediction", "swapped"),
    [
        (renal(slice(0, 4), slice(6, 10)), []),
        (renal(slice(6, 10), slice(0, 4)), ["RenalR", "RenalL"]),
        (renal(slice(6, 9), slice(0, 0)), ["RenalR"]),
        (renal(slice(2, 8), slice(0, 0)), []),  # two voxels of either label
        (renal(slice(2, 9), slice(0, 0)), ["RenalR"]),
        (renal(slice(0, 0), slice(0, 0)), []),
    ],
)
def test_a_structure_with_more_overlap_with_its_partners_label_is_swapped(
    prediction: np.ndarray, swapped: list[str]
) -> None:
    label, spacing_mm = renal(slice(0, 4), slice(6, 10)), (0.7, 0.7, 0.3)
    rows = evaluate(
        [EvaluationPair("a", "a", prediction, label, spacing_mm)], structures=SIDES, mirror_pairs=PAIRS
    ).rows
    assert [row.structure for row in rows if row.is_swapped] == swapped
    assert [row.partner for row in rows] == ["RenalL", "RenalR", None]
    shared = np.count_nonzero((prediction == 1) & (label == 2))
    assert rows[0].partner_overlap_ml == pytest.approx(shared * math.prod(spacing_mm) / 1000, rel=1e-12)
    assert rows[2].partner_overlap_ml is None


def test_vessels_and_partners_must_be_structures(refused: Any) -> None:
    with refused("structures", got="coronary"):
        evaluate([], structures=VESSEL, vessel_structures=["LCX"])
    with refused("structures", got="coronary"):
        evaluate([], structures=VESSEL, mirror_pairs=[("RenalR", "coronary")])


def test_scores_do_not_depend_on_empty_space_around_the_structures() -> None:
    rng = np.random.default_rng(0)
    prediction, label = (rng.integers(0, 4, (6, 7, 5)).astype(np.uint8) for _ in range(2))
    padded = [np.pad(labels, ((3, 0), (0, 9), (4, 4))) for labels in (prediction, label)]
    scores, of_padded = (
        evaluate(
            [EvaluationPair("a", "a", *maps, SPACING_MM)],
            structures={"RV": 1, "MYO": 2, "LV": 3, "LA": 4},
            vessel_structures=["RV", "LA"],
            mirror_pairs=[("RV", "LV")],
        )
        for maps in ((prediction, label), padded)
    )
    assert repr(scores) == repr(of_padded)
