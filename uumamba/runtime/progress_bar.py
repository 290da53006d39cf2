"""Progress bar on a terminal; nothing in a log."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from uumamba.runtime.terminal import is_terminal, make_console

T = TypeVar("T")


def track(
    items: Iterable[T], *, description: str, total: int | None = None, enabled: bool | None = None
) -> Iterable[T]:
    """Iterate over items with a progress bar on stderr.

    By default the bar appears only on a terminal; ``enabled`` overrides this. ``total`` is the number of items of an
    iterator.
    """
    if not (is_terminal(sys.stderr) if enabled is None else enabled):
        return items
    from rich.progress import track as rich_track

    return rich_track(items, description=description, total=total, console=make_console(stderr=True))
