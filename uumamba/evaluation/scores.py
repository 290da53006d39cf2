"""Rows of ``scores.csv``, one for each case and structure; all other numbers derive from them."""

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
    """Scores of one structure of one case; fields are the columns of ``scores.csv``, in order.

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
        """True if the vessel columns are filled."""
        return self.cl_dice is not None

    @property
    def lies_on_partner(self) -> bool:
        """True if the prediction overlaps more with the partner's label: left and right are swapped."""
        if self.partner_overlap_ml is None:
            return False
        own_ml = self.dice * (self.volume_ml + self.label_volume_ml) / 2
        # Overlaps are whole numbers of voxels below 1e9: a smaller difference is rounding error.
        return self.partner_overlap_ml > own_ml * (1 + 1e-9)


@dataclass(frozen=True)
class Scores:
    """Rows of an evaluation, rows of whole vessel trees, and cases that could not be scored."""

    rows: tuple[ScoreRow, ...]
    failures: tuple[CaseError, ...] = ()
    trees: tuple[ScoreRow, ...] = ()


COLUMNS = tuple(field.name for field in fields(ScoreRow))
REQUIRED_COLUMNS = COLUMNS[:2] + COLUMNS[3:10]
OPTIONAL_COLUMNS = COLUMNS[11:]
"""Columns that tables of earlier versions may lack."""
VESSEL_COLUMNS = ("cl_dice", "betti0_error", "betti1_error", "betti2_error", "length_error")


def write_scores(path: Path | str, rows: Iterable[ScoreRow]) -> None:
    """Write ``scores.csv`` or ``trees.csv``, whole or absent; numbers read back bit for bit."""
    write_csv(path, COLUMNS, (asdict(row).values() for row in rows))


def write_csv(path: Path | str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a table with a header, whole or absent; None becomes an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    write_text(path, text.getvalue())


def read_scores(path: Path | str) -> tuple[ScoreRow, ...]:
    """Read ``scores.csv`` or ``trees.csv``; tables of earlier versions may lack the columns after ``group``.

    Raises:
        UsageError: the file is missing, has no row, or is another table.
    """
    expected, fix = "a table of scores with at least one row", "write it with `uumamba evaluate`"
    try:
        with Path(path).open(newline="", encoding="utf-8") as stream:
            rows = tuple(_parse(entry) for entry in csv.DictReader(stream))
    except FileNotFoundError:
        raise UsageError(str(path), got="no file", expected=expected, fix=fix) from None
    except (KeyError, ValueError, TypeError, IsADirectoryError) as error:
        found = f"another file ({type(error).__name__}: {error})"
        raise UsageError(str(path), got=found, expected=expected, fix=fix) from None
    require(rows, str(path), got="no row", expected=expected, fix=fix)
    return rows


def _parse(entry: Mapping[str, str]) -> ScoreRow:
    cells: dict[str, Any] = {}
    for field in fields(ScoreRow):
        text = entry.get(field.name) if field.name in OPTIONAL_COLUMNS else entry[field.name]
        cells[field.name] = (float if "float" in str(field.type) else str)(text) if text else None
    missing = [name for name in REQUIRED_COLUMNS if cells[name] is None]
    if missing:
        raise ValueError(f"no {missing[0]}")
    return ScoreRow(**cells)
