"""Rows of ``scores.csv``, one for each case and structure.

All other numbers of an evaluation derive from them.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from uumamba.runtime.errors import CaseError, UsageError, require
from uumamba.runtime.files import write_text

SCORES_NAME = "scores.csv"
TREES_NAME = "trees.csv"
WHOLE_TREE = "whole tree"
"""Structure name in ``trees.csv``: all vessels of a case together."""


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one structure of one case.

    This class is the only declaration of the columns of ``scores.csv``: one column for each field, in order. A type
    without None makes the cell mandatory. A field with a default may be absent from tables of earlier versions, so a
    new metric is a new last field, ``float | None = None``.

    ``volume_ml`` is the prediction's. A mask is empty exactly if its volume is 0, so a row shows a miss. A total miss
    has Dice 0, NSD 0 and infinite distances; with both masks empty all four are NaN.

    The columns from ``cl_dice`` to ``length_error`` are those of :func:`uumamba.metrics.vessel_scores`, None for other
    structures. ``partner`` is the same structure on the other side of the body, or None, and ``partner_overlap_ml`` the
    overlap of the prediction with the partner's label.
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
        """Return whether the vessel columns are filled."""
        return self.cl_dice is not None

    @property
    def is_swapped(self) -> bool:
        """Return whether the structure is swapped with its left/right partner.

        Then the prediction overlaps more with the partner's label than with the structure's own label.
        """
        if self.partner_overlap_ml is None:
            return False
        own_ml = self.dice * (self.volume_ml + self.label_volume_ml) / 2
        # Overlaps are integer numbers of voxels below 1e9: a smaller difference is rounding error.
        return self.partner_overlap_ml > own_ml * (1 + 1e-9)


@dataclass(frozen=True)
class Scores:
    """Result of an evaluation: rows, failures and rows of vessel trees.

    Args:
        rows: one for each case and structure.
        failures: cases that could not be scored.
        trees: one for each case with several vessels, which are scored as one structure.
    """

    rows: tuple[ScoreRow, ...]
    failures: tuple[CaseError, ...] = ()
    trees: tuple[ScoreRow, ...] = ()


COLUMNS = tuple(field.name for field in fields(ScoreRow))
VESSEL_COLUMNS = ("cl_dice", "betti0_error", "betti1_error", "betti2_error", "length_error")
"""Columns of vessels only, in the order of :class:`uumamba.metrics.VesselScores`."""


def write_scores(path: Path | str, rows: Iterable[ScoreRow]) -> None:
    """Write ``scores.csv`` or ``trees.csv``.

    The file is complete or absent. :func:`read_scores` returns the same numbers bit for bit.
    """
    write_csv(path, COLUMNS, (asdict(row).values() for row in rows))


def write_csv(path: Path | str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table with a header; None becomes an empty cell.

    The file is complete or absent.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())


def read_scores(path: Path | str) -> tuple[ScoreRow, ...]:
    """Read ``scores.csv`` or ``trees.csv``.

    Tables of earlier versions may lack the columns after ``group``.

    Raises:
        UsageError: the file is missing, has no row, or is another table.
    """
    expected, fix = "a table of scores with at least one row", "write the table with `uumamba evaluate`"
    try:
        with Path(path).open(newline="", encoding="utf-8") as stream:
            rows = tuple(map(_parse_row, csv.DictReader(stream)))
    except FileNotFoundError:
        raise UsageError(str(path), got="no file", expected=expected, fix=fix) from None
    except (KeyError, ValueError, TypeError, IsADirectoryError) as error:
        raise UsageError(
            str(path), got=f"another file ({type(error).__name__}: {error})", expected=expected, fix=fix
        ) from None
    require(rows, str(path), got="no row", expected=expected, fix=fix)
    return rows


def _parse_row(entry: Mapping[str, str]) -> ScoreRow:
    cells: dict[str, Any] = {}
    for field in fields(ScoreRow):
        text = entry.get(field.name) if field.default is None else entry[field.name]
        if not text and "None" not in str(field.type):
            raise ValueError(f"empty {field.name}")
        cells[field.name] = (float if "float" in str(field.type) else str)(text) if text else None
    return ScoreRow(**cells)
