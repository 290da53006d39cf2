"""Scores: one row for each case and structure, and the ``scores.csv`` that every other number is made from."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from uumamba.runtime.errors import CaseError, UsageError
from uumamba.runtime.files import write_text

SCORES_NAME = "scores.csv"
TREES_NAME = "trees.csv"
WHOLE_TREE = "whole tree"
"""The structure that the rows of ``trees.csv`` name: all vessels of a case taken together."""


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one structure of one case; the fields are the columns of ``scores.csv``, in order.

    ``volume_ml`` is the prediction's. A mask is empty exactly where its volume is 0, so misses can be counted from a
    row. A total miss has Dice 0, NSD 0 and infinite distances; with both masks empty all four are NaN.

    The columns from ``cl_dice`` to ``length_error`` are those of :func:`uumamba.metrics.vessel_scores`, and None where
    the structure is no vessel. ``partner`` is the same structure on the body's other side, None where there is none,
    and ``partner_overlap_ml`` what the prediction shares with the partner's label.
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
    cl_dice: float | None = None
    betti0_error: float | None = None
    betti1_error: float | None = None
    betti2_error: float | None = None
    length_error: float | None = None
    partner: str | None = None
    partner_overlap_ml: float | None = None
    domain: str | None = None

    @property
    def is_vessel(self) -> bool:
        """Whether the vessel's columns are filled."""
        return self.cl_dice is not None

    @property
    def lies_on_partner(self) -> bool:
        """Whether the prediction shares more with the partner's label than with its own: left and right are swapped."""
        if self.partner_overlap_ml is None:
            return False
        own_ml = self.dice * (self.volume_ml + self.label_volume_ml) / 2
        # Overlaps are whole numbers of voxels, below 1e9 of them: a smaller difference is the formula's rounding.
        return self.partner_overlap_ml > own_ml * (1 + 1e-9)


@dataclass(frozen=True)
class Scores:
    """The rows of an evaluation, those of whole vessel trees, and the cases that could not be scored."""

    rows: tuple[ScoreRow, ...]
    failures: tuple[CaseError, ...] = ()
    trees: tuple[ScoreRow, ...] = ()


COLUMNS = tuple(field.name for field in fields(ScoreRow))
VESSEL_COLUMNS = ("cl_dice", "betti0_error", "betti1_error", "betti2_error", "length_error")


def write_scores(path: Path | str, rows: Iterable[ScoreRow]) -> None:
    """Write ``scores.csv`` or ``trees.csv``, whole or absent; numbers read back bit for bit."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


def read_scores(path: Path | str) -> tuple[ScoreRow, ...]:
    """Read a ``scores.csv`` or ``trees.csv``; columns after ``group`` may be absent, as in tables of earlier versions.

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
        partner=entry.get("partner") or None,
        domain=entry.get("domain") or None,
        **{name: _optional(entry.get(name)) for name in (*VESSEL_COLUMNS, "partner_overlap_ml")},
    )


def _optional(text: str | None) -> float | None:
    """None of an empty cell, and of a column that the table was written without."""
    return float(text) if text else None
