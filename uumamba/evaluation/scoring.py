"""Scores of predictions against their labels on one grid."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

from uumamba.evaluation.scores import VESSEL_COLUMNS, WHOLE_TREE, ScoreRow, Scores
from uumamba.metrics import dice_coefficient, surface_distances, vessel_scores, volume_ml
from uumamba.metrics.average_surface_distance import average_from_distances
from uumamba.metrics.hausdorff import hausdorff_from_distances
from uumamba.metrics.normalized_surface_dice import surface_dice_from_distances
from uumamba.runtime.errors import require, require_case
from uumamba.runtime.painting import select_values
from uumamba.types import LabelMap, Mask, SpacingMm

NSD_TOLERANCE_MM = 2.0
"""Tolerance of the ``nsd`` column: about one in-plane voxel of a cine MRI."""

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class EvaluationPair:
    """Prediction and label on one native grid.

    Args:
        case_id: the case, as named in the rows.
        patient_id: the patient, for the clinical table.
        prediction: label map in the stored axis order.
        label: ground truth of the same shape.
        spacing_mm: voxel edge lengths in array-axis order.
        phase: ``"ED"`` or ``"ES"`` if known.
        group: diagnosis if known.
        domain: vendor, centre or data set if known.
    """

    case_id: str
    patient_id: str
    prediction: LabelMap
    label: LabelMap
    spacing_mm: SpacingMm
    phase: str | None = None
    group: str | None = None
    domain: str | None = None


def evaluate(
    pairs: Iterable[EvaluationPair],
    *,
    structures: Mapping[str, int | Sequence[int]],
    vessel_structures: Collection[str] = (),
    mirror_pairs: Iterable[tuple[str, str]] = (),
    ignore_value: int | None = None,
) -> Scores:
    """Score predictions against their labels.

    Each structure gets Dice, surface distances and volumes. Vessels also get clDice, Betti errors and the error of the
    centreline length. Several vessels are also scored as one structure, because a complete tree may have wrong borders
    between its zones. These rows are ``trees``, separate from the others, so that no mean over structures counts a
    voxel twice.

    Ignored voxels of the label are background in label and prediction before anything is scored: a structure ends where
    the annotation ends.

    Pairs are read one at a time, so an iterator that reads from disk holds one pair in memory. Each structure is scored
    in its bounding box: on one core a coronary tree of 114 000 voxels in 512x512x275 takes 3 to 6 s, and the 23 zones
    of an aorta in 220x200x420 take 4 s.

    Args:
        pairs: predictions with their labels, in any order; rows have the same order.
        structures: label value of each structure, without the background, or all label values of each region;
            regions may overlap.
        vessel_structures: names of the vessels.
        mirror_pairs: structures that exchange places in a left/right mirrored scan.
        ignore_value: value of ignored voxels in the label; None if there are none.

    Raises:
        UsageError: a vessel or a structure of a pair is not in ``structures``.
        CaseError: a prediction and its label differ in shape.

    Example:
        >>> import numpy as np
        >>> label = np.zeros((4, 4, 2), np.uint8)
        >>> label[1:3, 1:3] = 1
        >>> pair = EvaluationPair("a_01", "a", prediction=label, label=label, spacing_mm=(1.0, 1.0, 5.0))
        >>> evaluate([pair], structures={"LV": 1}).rows[0].dice
        1.0
    """
    values_of = {name: (value,) if isinstance(value, int) else tuple(value) for name, value in structures.items()}
    partners = {one: other for left, right in mirror_pairs for one, other in ((left, right), (right, left))}
    unknown = sorted({*vessel_structures, *partners} - structures.keys())
    require(
        not unknown, "structures", got=", ".join(structures), expected=f"label values for {', '.join(unknown)} also"
    )
    rows: list[ScoreRow] = []
    trees: list[ScoreRow] = []
    for each in pairs:
        pair = each if ignore_value is None else _leave_out(each, ignore_value)
        boxes = _find_boxes(pair)
        for structure, values in values_of.items():
            partner = partners.get(structure)
            mirrored = None if partner is None else (partner, values_of[partner])
            rows.append(
                _score_structure(
                    pair, boxes, structure, values, is_vessel=structure in vessel_structures, partner=mirrored
                )
            )
        if len(vessel_structures) > 1:
            tree = list(dict.fromkeys(value for name in vessel_structures for value in values_of[name]))
            trees.append(_score_structure(pair, boxes, WHOLE_TREE, tree, is_vessel=True))
    return Scores(tuple(rows), trees=tuple(trees))


def _leave_out(pair: EvaluationPair, ignore_value: int) -> EvaluationPair:
    """Make ignored voxels background in label and prediction."""
    _check_shapes(pair)
    ignored = pair.label == ignore_value
    label, prediction = (np.where(ignored, 0, each).astype(each.dtype) for each in (pair.label, pair.prediction))
    return replace(pair, label=label, prediction=prediction)


def _check_shapes(pair: EvaluationPair) -> None:
    require_case(
        pair.prediction.shape == pair.label.shape,
        pair.case_id,
        "prediction",
        got=f"shape {pair.prediction.shape}",
        expected=f"the label's shape {pair.label.shape}",
        fix="predict on the grid of the label",
    )


def _find_boxes(pair: EvaluationPair) -> dict[int, Slices]:
    """Return the bounding box of each value in prediction and label together."""
    _check_shapes(pair)
    found = zip_longest(find_objects(pair.prediction), find_objects(pair.label))
    return {value: _join_boxes([box for box in both if box]) for value, both in enumerate(found, start=1) if any(both)}


def _join_boxes(boxes: Sequence[Slices]) -> Slices:
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def _score_structure(
    pair: EvaluationPair,
    boxes: Mapping[int, Slices],
    structure: str,
    values: Sequence[int],
    *,
    is_vessel: bool,
    partner: tuple[str, Sequence[int]] | None = None,
) -> ScoreRow:
    """Score the voxels of all ``values`` as one structure.

    ``partner`` is name and label values of the same structure on the other side of the body.
    """
    around = [boxes[value] for value in values if value in boxes]
    box = _join_boxes(around) if around else (slice(0, 0),) * pair.label.ndim
    prediction, label = (select_values(labels[box], values) for labels in (pair.prediction, pair.label))
    columns = _score_vessel(prediction, label, pair.spacing_mm) if is_vessel else {}
    if partner is not None:
        shared = prediction & select_values(pair.label[box], partner[1])
        columns |= {"partner": partner[0], "partner_overlap_ml": volume_ml(shared, spacing_mm=pair.spacing_mm)}
    distances = surface_distances(prediction, label, spacing_mm=pair.spacing_mm)
    return ScoreRow(
        case_id=pair.case_id,
        patient_id=pair.patient_id,
        phase=pair.phase,
        structure=structure,
        dice=dice_coefficient(prediction, label),
        hd95_mm=hausdorff_from_distances(distances, percentile=95),
        nsd=surface_dice_from_distances(distances, tolerance_mm=NSD_TOLERANCE_MM),
        volume_ml=volume_ml(prediction, spacing_mm=pair.spacing_mm),
        label_volume_ml=volume_ml(label, spacing_mm=pair.spacing_mm),
        assd_mm=average_from_distances(distances),
        group=pair.group,
        domain=pair.domain,
        **columns,
    )


def _score_vessel(prediction: Mask, label: Mask, spacing_mm: SpacingMm) -> dict[str, Any]:
    found = vessel_scores(prediction, label, spacing_mm=spacing_mm)
    scores = (found.cl_dice, *found.betti_errors, *(None,) * (3 - label.ndim), found.length_error)
    return dict(zip(VESSEL_COLUMNS, scores, strict=True))
