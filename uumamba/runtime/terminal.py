"""Output to a terminal or pipe that can never end the work.

Streams may be closed, full, a pipe without a reader, or unable to encode a character.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

NARROWEST = 20
"""Columns below which a terminal's width is not believed; some report 0."""
_USUAL_WIDTH = 80


class LossyStream:
    """Text stream whose text is lost where it cannot be written.

    It has no ``buffer``, so that no other writer passes it by.

    Args:
        stream: the stream, or None if the process was started without it.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text; characters that cannot be encoded become escapes."""
        encoding = self.encoding
        try:
            if self._stream is not None:
                self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError, LookupError):
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flush, or give up the stream."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            self._give_up()

    @property
    def encoding(self) -> str:
        """Return the encoding of the stream."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return is_terminal(self._stream)

    def _give_up(self) -> None:
        """Send further text to nowhere, also Python's last flush."""
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # type: ignore[union-attr]  # None raises AttributeError
            os.close(nowhere)
        self._stream = None

    def __getattr__(self, name: str) -> Any:
        if name in {"buffer", "_stream"}:
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextmanager
def lossy_output() -> Iterator[None]:
    """Replace stdout and stderr by a :class:`LossyStream` each."""
    before = sys.stdout, sys.stderr
    streams: Any = tuple(map(LossyStream, before))
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a stream exists, is open and is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except (OSError, ValueError):
        return False


def make_console(*, stderr: bool = False) -> "Console":
    """Make a console for tables of names, which are no markup."""
    from rich.console import Console

    console = Console(stderr=stderr, markup=False, emoji=False)
    if console.width < NARROWEST:
        console.width = _USUAL_WIDTH
    return console
