"""Rows of ``scores.csv``, one for each case and structure.

All other numbers of an evaluation derive from them.
"""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from operator import attrgetter
from pathlib import Path
from sys import intern
from typing import Any, TypeVar

from uumamba.runtime.errors import CaseError, UsageError, require
from uumamba.runtime.files import find_read_fix, write_text
from uumamba.runtime.text_files import MAX_SCORES_BYTES, LimitError, open_limited

SCORES_NAME = "scores.csv"
TREES_NAME = "trees.csv"
WHOLE_TREE = "whole tree"
"""Structure name in ``trees.csv``: all vessels of a case together."""


@dataclass(frozen=True, slots=True)
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
_FORMULA_STARTS = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)  # also full-width signs
_CELLS = tuple(
    (each.name, "float" in str(each.type), "None" not in str(each.type), each.default is not MISSING)
    for each in fields(ScoreRow)
)
"""Name of each column, and whether it is a number, needed, and absent from tables of earlier versions."""

Row = TypeVar("Row")


def write_scores(path: Path | str, rows: Iterable[ScoreRow]) -> None:
    """Write ``scores.csv`` or ``trees.csv``.

    The file is complete or absent. :func:`read_scores` returns the same numbers bit for bit.
    """
    write_csv(path, COLUMNS, map(attrgetter(*COLUMNS), rows))


def write_csv(path: Path | str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table with a header; None becomes an empty cell.

    The file is complete or absent. A spreadsheet runs a cell that starts with ``=``, ``+``, ``-``, ``@``, a tab or a
    carriage return, so texts with such a start get an apostrophe before them, which :func:`read_text_cell` removes.
    """
    text = io.StringIO()
    plain, quoted = (csv.writer(text, lineterminator="\n", quoting=each) for each in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    plain.writerow(columns)
    for row in map(_protect_text, rows):
        has_return = any(isinstance(cell, str) and "\r" in cell for cell in row)  # which the writer does not quote
        (quoted if has_return else plain).writerow(row)
    write_text(path, text.getvalue())


def read_text_cell(cell: str) -> str:
    """Return the text of a cell of :func:`write_csv`.

    Example:
        >>> read_text_cell("'=1+1"), read_text_cell("'quoted'")
        ('=1+1', "'quoted'")
    """
    return cell[1:] if cell[:1] == "'" and _is_formula(cell) else cell


def group_rows(rows: Iterable[Row], field: str) -> dict[Any, list[Row]]:
    """Group rows by the value of a field, in order of appearance."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(getattr(row, field), []).append(row)
    return groups


def read_scores(path: Path | str) -> tuple[ScoreRow, ...]:
    """Read ``scores.csv`` or ``trees.csv``.

    Tables of earlier versions may lack the columns after ``group``.

    Raises:
        UsageError: the file is missing, cannot be read, has no row, is too large or is another table.
    """
    expected, fix = "a table of scores with at least one row", "write the table with `uumamba evaluate`"
    try:
        with open_limited(path, most=MAX_SCORES_BYTES) as stream:
            text = io.TextIOWrapper(stream, newline="", encoding="utf-8-sig")  # spreadsheets write a byte order mark
            rows = tuple(map(_parse_row, csv.DictReader(text)))
    except FileNotFoundError:
        raise UsageError(str(path), got="no file", expected=expected, fix=fix) from None
    except OSError as error:
        fix = find_read_fix(error, otherwise=fix)
        raise UsageError(str(path), got=error.strerror, expected=expected, fix=fix) from None
    except LimitError as error:
        raise UsageError(str(path), got=error, expected=expected, fix=fix) from None
    except KeyError as error:
        got = f"no column {error}, with commas between columns"
        raise UsageError(str(path), got=got, expected=expected, fix=fix) from None
    except (ValueError, TypeError, csv.Error) as error:
        raise UsageError(str(path), got=f"another file ({error})", expected=expected, fix=fix) from None
    require(rows, str(path), got="no row", expected=expected, fix=fix)
    return rows


def _protect_text(row: Iterable[Any]) -> list[Any]:
    return [f"'{cell}" if isinstance(cell, str) and _is_formula(cell) else cell for cell in row]


def _is_formula(cell: str) -> bool:
    """Return whether a text starts a formula, apart from apostrophes before it."""
    return cell.lstrip("'").startswith(_FORMULA_STARTS)


def _parse_row(entry: Mapping[str, str]) -> ScoreRow:
    cells: dict[str, Any] = {}
    for name, is_number, is_needed, is_new in _CELLS:
        text = entry.get(name) if is_new else entry[name]
        if text:
            cells[name] = float(text) if is_number else intern(read_text_cell(text))
        elif is_needed:
            raise ValueError(f"empty {name}")
        else:
            cells[name] = None
    return ScoreRow(**cells)
