"""Text headers of MetaImage and NRRD: lines of key and value."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uumamba.data.formats.stored_volume import RESTORE, make_header_error
from uumamba.data.formats.voxel_stream import make_read_error
from uumamba.runtime.errors import require_case

MAX_HEADER_BYTES = 2**20
MAX_AXES = 16


@dataclass(frozen=True)
class TextHeader:
    """Fields of a text header, read as numbers on request.

    Args:
        path: the header's file.
        case_id: name in errors.
        fields: value of each key.
        length: bytes before the voxels of a file that holds them, too.
    """

    path: Path
    case_id: str
    fields: Mapping[str, str]
    length: int

    def require(self, condition: object, key: str, *, expected: str, fix: str = RESTORE) -> None:
        """Raise an error with the value of a wrong key."""
        got = f"{key} {self.fields[key][:60]!r}" if key in self.fields else f"no {key}"
        require_case(condition, self.case_id, "file", got=f"{self.path.name} with {got}", expected=expected, fix=fix)

    def read_text(self, key: str, default: str | None = None) -> str:
        """Return a field's text; without a default it must exist."""
        if default is None:
            self.require(key in self.fields, key, expected=f"the field {key}")
        return self.fields.get(key, default or "")

    def read_integers(self, key: str, *, least: int) -> tuple[int, ...]:
        """Return a field of integers of at least a value."""
        words = self.read_text(key).split()
        self.require(
            0 < len(words) <= MAX_AXES and all(_is_integer(word, least) for word in words),
            key,
            expected=f"up to {MAX_AXES} integers of at least {least}",
        )
        return tuple(int(word) for word in words)

    def read_numbers(self, key: str, count: int) -> NDArray[np.float64]:
        """Return a field of so many real numbers."""
        numbers = parse_numbers(self.read_text(key).split())
        self.require(len(numbers) == count, key, expected=f"{count} numbers")
        return numbers

    def find_data_file(self, name: str, key: str) -> Path:
        """Return the path of a data file in the header's folder.

        A header may come from a stranger, so it must not name any other file as its voxels.
        """
        path = self.path.parent / name
        is_plain = Path(name).name == name and name.isprintable()
        is_beside = is_plain and path.resolve().parent == self.path.resolve().parent
        self.require(is_beside, key, expected="a file in the header's folder", fix="put both files into one folder")
        self.require(path.is_file(), key, expected="an existing regular file")
        return path


def iterate_lines(path: Path, case_id: str) -> Iterator[tuple[str, int]]:
    """Yield the first lines of a file, with their ends.

    Voxels may follow, so bytes are read as Latin-1. A line that the largest header cuts off is left out.
    """
    start, position = _read_start(path, case_id), 0
    while position < len(start):
        end = start.find(b"\n", position)
        if end < 0 and len(start) == MAX_HEADER_BYTES:
            return
        stop = len(start) if end < 0 else end
        yield start[position:stop].decode("latin-1").rstrip("\r"), min(stop + 1, len(start))
        position = stop + 1


def add_field(fields: dict[str, str], key: str, value: str, *, path: Path, case_id: str) -> None:
    """Add a field; a key may not have two values.

    Readers differ in which of them they use, so either may be wrong.

    Raises:
        CaseError: the key has another value.
    """
    first = fields.setdefault(key, value)
    if first.split() != value.split():
        raise make_header_error(
            case_id, path, f"{key} {first[:60]!r} and {value[:60]!r}", expected=f"one {key}", fix="correct the header"
        )


def parse_numbers(words: Sequence[str]) -> NDArray[np.float64]:
    """Parse real numbers; without any result if a word is none.

    Example:
        >>> parse_numbers(["1", "2.5e1"]).tolist(), parse_numbers(["1", "x"]).tolist()
        ([1.0, 25.0], [])
    """
    try:
        return np.array([float(word) for word in words], dtype=np.float64)
    except ValueError:
        return np.empty(0)


def _read_start(path: Path, case_id: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_HEADER_BYTES)
    except OSError as error:
        raise make_read_error(case_id, path, error) from None


def _is_integer(word: str, least: int) -> bool:
    return len(word) < 19 and word.lstrip("+-").isdecimal() and word.isascii() and int(word) >= least
