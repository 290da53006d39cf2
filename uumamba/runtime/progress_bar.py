"""Progress bar on a terminal; nothing in a log."""

import sys
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def track(
    items: Iterable[T], *, description: str, total: int | None = None, enabled: bool | None = None
) -> Iterable[T]:
    """Iterate over items with a progress bar on stderr.

    By default the bar appears only on a terminal; ``enabled`` overrides this. ``total`` is the number of items of an
    iterator.
    """
    if not (sys.stderr.isatty() if enabled is None else enabled):
        return items
    from rich.console import Console
    from rich.progress import track as rich_track

    return rich_track(items, description=description, total=total, console=Console(stderr=True))
