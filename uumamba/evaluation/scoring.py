"""Scoring: from pairs of label maps on one grid to rows of scores."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

from uumamba.evaluation.scores import VESSEL_COLUMNS, WHOLE_TREE, ScoreRow, Scores
from uumamba.metrics import dice_coefficient, surface_distances, vessel_scores, volume_ml
from uumamba.metrics.average_surface_distance import average_of
from uumamba.metrics.hausdorff import hausdorff_of
from uumamba.metrics.normalized_surface_dice import normalized_surface_dice_of
from uumamba.types import LabelMap, Mask, SpacingMm

NSD_TOLERANCE_MM = 2.0
"""Tolerance of the ``nsd`` column: about one voxel in the plane of a cine MRI."""

Box = tuple[slice, ...]


@dataclass(frozen=True)
class EvaluationPair:
    """A prediction and its label on one native grid.

    Args:
        case_id: names the rows.
        patient_id: the unit of the clinical table.
        prediction: label map, in the array's stored axis order.
        label: ground truth, of the same shape.
        spacing_mm: voxel edge lengths in array-axis order.
        phase: ``"ED"`` or ``"ES"`` where known.
        group: diagnosis where known.
        domain: vendor, centre or data set where known.
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
    structures: Mapping[str, int],
    vessel_structures: Collection[str] = (),
    mirror_pairs: Iterable[tuple[str, str]] = (),
) -> Scores:
    """Score predictions against their labels: Dice, surface distances and volumes of each structure.

    Vessels get clDice, Betti errors and the error of their centreline's length besides. Where there are several, they
    are also scored as one, for a tree that is whole may well have its borders between zones in the wrong place. Those
    rows are ``trees``, apart from the others, so that no mean over structures counts a structure twice.

    Pairs are taken one at a time, so an iterator that reads them from disk never holds more than one. Each structure is
    scored in the box around it: on one core a coronary tree of 114 000 voxels in 512x512x275 takes 3 to 6 s, as large
    as that box is, and the 23 zones of an aorta in 220x200x420 take 4 s.

    Args:
        pairs: predictions with their labels, in any order; rows keep it.
        structures: label value of each structure, background left out.
        vessel_structures: those that are vessels.
        mirror_pairs: structures that a left/right mirrored scan would have exchanged.

    Raises:
        ValueError: a prediction and its label differ in shape, or a vessel or one of a pair is no structure.

    Example:
        >>> import numpy as np
        >>> label = np.zeros((4, 4, 2), np.uint8)
        >>> label[1:3, 1:3] = 1
        >>> pair = EvaluationPair("a_01", "a", prediction=label, label=label, spacing_mm=(1.0, 1.0, 5.0))
        >>> evaluate([pair], structures={"LV": 1}).rows[0].dice
        1.0
    """
    partners = {one: other for left, right in mirror_pairs for one, other in ((left, right), (right, left))}
    unknown = sorted({*vessel_structures, *partners} - structures.keys())
    if unknown:
        raise ValueError(f"{', '.join(unknown)} are named, but the structures are {', '.join(structures)}")
    rows: list[ScoreRow] = []
    trees: list[ScoreRow] = []
    for pair in pairs:
        boxes = _boxes(pair)
        for structure, value in structures.items():
            row = _score(pair, boxes, structure, [value], is_vessel=structure in vessel_structures)
            rows.append(_beside_partner(row, pair, boxes, structures, partners.get(structure)))
        if len(vessel_structures) > 1:
            values = [structures[structure] for structure in vessel_structures]
            trees.append(_score(pair, boxes, WHOLE_TREE, values, is_vessel=True))
    return Scores(tuple(rows), trees=tuple(trees))


def _boxes(pair: EvaluationPair) -> dict[int, Box]:
    """The smallest box around each value, in prediction and label together: found in one sweep of each."""
    if pair.prediction.shape != pair.label.shape:
        shapes = f"{pair.prediction.shape} and {pair.label.shape}"
        raise ValueError(f"prediction and label must lie on one grid, got shapes {shapes}")
    found = zip_longest(find_objects(pair.prediction), find_objects(pair.label))
    return {value: _joined([box for box in both if box]) for value, both in enumerate(found, start=1) if any(both)}


def _joined(boxes: Sequence[Box]) -> Box:
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def _score(
    pair: EvaluationPair, boxes: Mapping[int, Box], structure: str, values: Sequence[int], *, is_vessel: bool
) -> ScoreRow:
    """Score the voxels of these values as one structure."""
    around = [boxes[value] for value in values if value in boxes]
    box = _joined(around) if around else (slice(0, 0),) * pair.label.ndim
    prediction, label = (_mask_of(labels[box], values) for labels in (pair.prediction, pair.label))
    distances = surface_distances(prediction, label, spacing_mm=pair.spacing_mm)
    return ScoreRow(
        case_id=pair.case_id,
        patient_id=pair.patient_id,
        phase=pair.phase,
        structure=structure,
        dice=dice_coefficient(prediction, label),
        hd95_mm=hausdorff_of(distances, percentile=95),
        nsd=normalized_surface_dice_of(distances, tolerance_mm=NSD_TOLERANCE_MM),
        volume_ml=volume_ml(prediction, spacing_mm=pair.spacing_mm),
        label_volume_ml=volume_ml(label, spacing_mm=pair.spacing_mm),
        assd_mm=average_of(distances),
        group=pair.group,
        domain=pair.domain,
        **(_vessel_columns(prediction, label, pair.spacing_mm) if is_vessel else {}),
    )


def _mask_of(labels: LabelMap, values: Sequence[int]) -> Mask:
    return labels == values[0] if len(values) == 1 else np.isin(labels, values)


def _vessel_columns(prediction: Mask, label: Mask, spacing_mm: SpacingMm) -> dict[str, Any]:
    found = vessel_scores(prediction, label, spacing_mm=spacing_mm)
    scores = (found.cl_dice, *found.betti_errors, *(None,) * (3 - label.ndim), found.length_error)
    return dict(zip(VESSEL_COLUMNS, scores, strict=True))


def _beside_partner(
    row: ScoreRow, pair: EvaluationPair, boxes: Mapping[int, Box], structures: Mapping[str, int], partner: str | None
) -> ScoreRow:
    """The row with what its prediction shares with the label of its partner, where it has one."""
    if partner is None:
        return row
    box = boxes.get(structures[row.structure], (slice(0, 0),) * pair.label.ndim)
    shared = (pair.prediction[box] == structures[row.structure]) & (pair.label[box] == structures[partner])
    return replace(row, partner=partner, partner_overlap_ml=volume_ml(shared, spacing_mm=pair.spacing_mm))
