"""Characters of names that are not shown."""

import unicodedata

from uumamba.runtime.errors import require

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode's categories of control, format and surrogate characters, and of separators of lines and paragraphs."""


def check_shown(text: str, key: str) -> None:
    r"""Raise if a name holds characters that are not shown.

    Newlines, terminal escapes, invisible characters and marks of the text direction make one name look like another,
    or like several.

    Args:
        text: the name.
        key: the name's key, for the error.

    Raises:
        UsageError: the name holds such a character; ``got`` is the escaped text.

    Example:
        >>> check_shown("patient001_frame01", "case_id")
        >>> check_shown("two" + chr(9) + "words", "case_id")
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: case_id: got 'two\twords', expected only shown characters. Fix: remove '\t'.
    """
    hidden = next((each for each in text if unicodedata.category(each) in HIDDEN), None)
    require(
        hidden is None,
        key,
        got=repr(text),
        expected="only shown characters",
        fix=f"remove {hidden!r}",
    )
