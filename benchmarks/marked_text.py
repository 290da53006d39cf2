"""Generated parts of pages that are written by hand, between two markers."""

import re

from uumamba.runtime.errors import require


def fill_markers(text: str, name: str, content: str) -> str:
    r"""Replace the text between the two markers of a name.

    Raises:
        UsageError: the text does not have both markers, once each.

    Example:
        >>> fill_markers("<!-- a:begin -->old<!-- a:end -->", "a", "new")
        '<!-- a:begin -->\nnew<!-- a:end -->'
    """
    begin, end = make_markers(name)
    found = [mark for mark in re.findall("<!-- .*? -->", text) if mark in (begin, end)]
    expected, fix = f"{begin} and then {end}, once each", "correct the markers of the page"
    require(found == [begin, end], "markers", got=" ".join(found), expected=expected, fix=fix)
    before, after = text[: text.index(begin)], text[text.index(end) :]
    return f"{before}{begin}\n{content}{after}"


def make_markers(name: str) -> tuple[str, str]:
    """Return the comments at the beginning and the end."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
