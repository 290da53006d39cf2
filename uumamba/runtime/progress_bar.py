"""Progress bar on a terminal; nothing in a log."""

import sys
from collections.abc import Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def track(items: Sequence[Item], *, description: str, enabled: bool | None = None) -> Iterable[Item]:
    """Iterate with a bar on stderr if it is a terminal (or if ``enabled``)."""
    if not (sys.stderr.isatty() if enabled is None else enabled):
        return items
    from rich.console import Console
    from rich.progress import track as rich_track

    return rich_track(items, description=description, console=Console(stderr=True))
