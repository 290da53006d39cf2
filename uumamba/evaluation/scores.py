"""Scores: one row for each case and structure, and the ``scores.csv`` that every other number is made from."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from uumamba.errors import CaseError, UsageError
from uumamba.files import write_text
from uumamba.metrics import dice_coefficient, surface_distances, volume_ml
from uumamba.metrics.average_surface_distance import average_of
from uumamba.metrics.hausdorff import hausdorff_of
from uumamba.metrics.normalized_surface_dice import normalized_surface_dice_of
from uumamba.types import LabelMap, SpacingMm

SCORES_NAME = "scores.csv"
NSD_TOLERANCE_MM = 2.0
"""Tolerance of the ``nsd`` column: about one voxel in the plane of a cine MRI."""


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
    """

    case_id: str
    patient_id: str
    prediction: LabelMap
    label: LabelMap
    spacing_mm: SpacingMm
    phase: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one structure of one case; the fields are the columns of ``scores.csv``, in order.

    ``volume_ml`` is the prediction's. A mask is empty exactly where its volume is 0, so misses can be counted from a
    row. A total miss has Dice 0, NSD 0 and infinite distances; with both masks empty all four are NaN.
    """

    case_id: str
    patient_id: str
    phase: str | None
    structure: str
    dice: float
    hd95_mm: float
    nsd: float
    volume_ml: float
    label_volume_ml: float
    assd_mm: float
    group: str | None


@dataclass(frozen=True)
class Scores:
    """The rows of an evaluation, and the cases that could not be scored."""

    rows: tuple[ScoreRow, ...]
    failures: tuple[CaseError, ...] = ()


COLUMNS = tuple(field.name for field in fields(ScoreRow))


def evaluate(pairs: Iterable[EvaluationPair], *, structures: Mapping[str, int]) -> Scores:
    """Score predictions against their labels: Dice, surface distances and volumes of each structure.

    Pairs are taken one at a time, so an iterator that reads them from disk never holds more than one.

    Args:
        pairs: predictions with their labels, in any order; rows keep it.
        structures: label value of each structure, background left out.

    Raises:
        ValueError: a prediction and its label differ in shape.

    Example:
        >>> import numpy as np
        >>> label = np.zeros((4, 4, 2), np.uint8)
        >>> label[1:3, 1:3] = 1
        >>> pair = EvaluationPair("a_01", "a", prediction=label, label=label, spacing_mm=(1.0, 1.0, 5.0))
        >>> evaluate([pair], structures={"LV": 1}).rows[0].dice
        1.0
    """
    return Scores(tuple(row for pair in pairs for row in _score_case(pair, structures)))


def write_scores(path: Path | str, rows: Iterable[ScoreRow]) -> None:
    """Write ``scores.csv``, whole or absent; numbers are written so that they read back bit for bit."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


def read_scores(path: Path | str) -> tuple[ScoreRow, ...]:
    """Read a ``scores.csv``.

    Raises:
        UsageError: the file is missing, holds no row, or is not such a table.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = tuple(_parse(entry) for entry in csv.DictReader(stream))
    except FileNotFoundError:
        raise UsageError(f"There are no scores at {path}; `uumamba evaluate` writes them.") from None
    except (KeyError, ValueError, TypeError, IsADirectoryError) as error:
        raise UsageError(
            f"{path} is no table of scores ({type(error).__name__}: {error}); write it anew with `uumamba evaluate`."
        ) from None
    if not rows:
        raise UsageError(f"{path} has no rows; score at least one case with `uumamba evaluate`.")
    return rows


def _score_case(pair: EvaluationPair, structures: Mapping[str, int]) -> Iterator[ScoreRow]:
    for structure, value in structures.items():
        prediction, label = pair.prediction == value, pair.label == value
        distances = surface_distances(prediction, label, spacing_mm=pair.spacing_mm)
        yield ScoreRow(
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
        )


def _parse(entry: Mapping[str, str]) -> ScoreRow:
    return ScoreRow(
        case_id=entry["case_id"],
        patient_id=entry["patient_id"],
        phase=entry["phase"] or None,
        structure=entry["structure"],
        dice=float(entry["dice"]),
        hd95_mm=float(entry["hd95_mm"]),
        nsd=float(entry["nsd"]),
        volume_ml=float(entry["volume_ml"]),
        label_volume_ml=float(entry["label_volume_ml"]),
        assd_mm=float(entry["assd_mm"]),
        group=entry["group"] or None,
    )
