"""Hook of mkdocs that writes the table of names at the top of each page of the API."""

import re
from functools import cache
from typing import Any

import griffe

from docs.hooks.rest_docstrings import RestDocstrings

MARK = "<!-- overview -->"
_ENTRY = re.compile(r"^(?:## (?P<group>.+)|::: (?P<path>\S+))$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the mark on a page by the names below it and the first lines of their docstrings."""
    return markdown.replace(MARK, write_overview(markdown)) if MARK in markdown else markdown


def write_overview(page: str) -> str:
    """Write a table for each heading of a page, one row for each name below it."""
    lines = ['<div class="overview" markdown="1">']
    for found in _ENTRY.finditer(page):
        if found["group"]:
            lines += ["", f"| {found['group']} | |", "|---|---|"]
        else:
            name = found["path"].rpartition(".")[2]
            lines.append(f"| [`{name}`][{found['path']}] | {find_summary(found['path'])} |")
    return "\n".join([*lines, "", "</div>"])


def find_summary(path: str) -> str:
    """Return the first paragraph of an object's docstring."""
    docstring = load_package()[path.removeprefix("uumamba.")].docstring
    return "" if docstring is None else " ".join(docstring.value.split("\n\n")[0].split())


@cache
def load_package() -> griffe.Module:
    """Read the package's source code, without importing it."""
    loaded = griffe.load("uumamba", search_paths=["."], extensions=griffe.Extensions(RestDocstrings()))
    assert isinstance(loaded, griffe.Module)
    return loaded
