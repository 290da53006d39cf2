"""Markdown of the generated pages: tables, link targets and inline code."""

import re
from collections.abc import Iterable, Sequence
from unicodedata import lookup

GREEK_NAMES = {"lambda": "LAMDA"}
"""Names of letters in Unicode that differ from those in LaTeX."""


def make_table(header: Sequence[str], lines: Iterable[Sequence[str]], *, numbers: Sequence[bool] = ()) -> str:
    """Format a table.

    Args:
        header: names of the columns.
        lines: texts of the cells, one for each column.
        numbers: whether a column holds numbers, which are aligned to the right; no column does without it.
    """
    marks = ["--:" if is_number else "---" for is_number in numbers or [False] * len(header)]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, marks, *cells))


def make_anchor(title: str) -> str:
    """Return a heading's name as the target of a link.

    Example:
        >>> make_anchor("What methods claim, on digits"), make_anchor("optim.base: SGD")
        ('what-methods-claim-on-digits', 'optimbase-sgd')
    """
    return "".join(mark for mark in title.lower().replace(" ", "-") if mark.isalnum() or mark in "-_")


def convert_markup(text: str) -> str:
    r"""Convert a docstring's roles and double backticks to inline code.

    Formulas are written in Unicode. Code has no vertical bar, which a table would need escaped in some programs only.

    Example:
        >>> convert_markup("``null`` for none; see :class:`~uumamba.optim.SAM`")
        '`null` for none; see `uumamba.optim.SAM`'
        >>> convert_markup(r"added to :math:`|w|` by :math:`\rho_x \sqrt{n}`")
        'added to `abs(w)` by `ρ_x √n`'
    """
    plain = re.sub(r":\w+(?::\w+)?:`~?([^`]*)`", r"`\1`", text)
    return re.sub("`(.*?)`", lambda found: f"`{_convert_formula(found[1])}`", re.sub(r"``(.*?)``", r"`\1`", plain))


def _convert_formula(code: str) -> str:
    without = re.sub(r"\|(\w+)\|", r"abs(\1)", re.sub(r"\\sqrt\{(\w+)\}", r"√\1", code))
    return re.sub(r"\\([a-z]+)", lambda found: _find_letter(found[1]), without)


def _find_letter(name: str) -> str:
    return lookup(f"GREEK SMALL LETTER {GREEK_NAMES.get(name, name.upper())}")
