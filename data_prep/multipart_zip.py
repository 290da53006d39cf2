"""Multipart zip archives: which there are, whether all their parts are, and how to unpack them."""

import re
import shlex
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_LAST_PART = re.compile(r"(?P<name>.+)\.(change2zip|zip)", re.IGNORECASE)
_EARLIER_PART = re.compile(r"(?P<name>.+)\.z(?P<number>\d{2,})", re.IGNORECASE)
_END_RECORD = b"PK\x05\x06"
_LONGEST_END = 22 + 2**16 - 1  # the record and its longest comment
_UNKNOWN_COUNT = 0xFFFF
# All earlier parts are of one size, but a header is never divided, so one may end a little sooner.
_SLACK_BYTES = 2**18


@dataclass(frozen=True)
class MultipartZip:
    """An archive in parts ``NAME.z01``, ``NAME.z02``, ... and last ``NAME.zip``, which Kaggle has as ``.change2zip``.

    Args:
        name: without suffix; a shard of cases such as ``1-200``.
        folder: where the parts lie.
        earlier: the numbered parts, by number.
        last: the part with the table of contents; None where it is missing.
    """

    name: str
    folder: Path
    earlier: dict[int, Path]
    last: Path | None

    def problem(self) -> str | None:
        """What is wrong with the parts, judged by their names and sizes and the last part's end; None if nothing is."""
        if self.last is None:
            return f"the last part of the archive ({self.name}.change2zip or {self.name}.zip) is missing"
        count = _earlier_parts(self.last)
        if count is None:
            return f"the last part of the archive, {self.last.name}, is cut off or no zip archive"
        expected = range(1, max([count, *self.earlier]) + 1)
        if missing := [f"{self.name}.z{number:02d}" for number in expected if number not in self.earlier]:
            are = "are" if len(missing) > 1 else "is"
            return f"of the archive's {len(expected)} numbered parts {len(missing)} {are} missing: {', '.join(missing)}"
        sizes = {path.name: path.stat().st_size for path in self.earlier.values()}
        if cut := [name for name, size in sizes.items() if size < max(sizes.values()) - _SLACK_BYTES]:
            return f"the archive's part {cut[0]} is cut off ({sizes[cut[0]]} of {max(sizes.values())} bytes)"
        return None

    def unpack_command(self) -> str:
        """The shell command that unpacks the archive beside its parts; it needs 7-Zip."""
        named = shlex.quote(f"{self.name}.zip")
        rename = ""
        if self.last is not None and self.last.suffix != ".zip":
            rename = f"mv {shlex.quote(self.last.name)} {named} && "
        return f"cd {shlex.quote(str(self.folder))} && {rename}7z x {named}"


def find_multipart_zips(files: Iterable[Path]) -> list[MultipartZip]:
    """The archives among files, sorted; a plain ``.zip`` without numbered parts is none.

    Example:
        >>> files = [Path("raw", name) for name in ("1-200.z01", "1-200.change2zip", "notes.zip")]
        >>> archive, = find_multipart_zips(files)
        >>> archive.unpack_command()
        'cd raw && mv 1-200.change2zip 1-200.zip && 7z x 1-200.zip'
    """
    earlier: dict[tuple[Path, str], dict[int, Path]] = {}
    last: dict[tuple[Path, str], Path] = {}
    for path in sorted(files):
        if match := _EARLIER_PART.fullmatch(path.name):
            earlier.setdefault((path.parent, match["name"]), {})[int(match["number"])] = path
        elif match := _LAST_PART.fullmatch(path.name):
            last[path.parent, match["name"]] = path
    named = {key for key, path in last.items() if path.suffix.lower() == ".change2zip"}
    return [
        MultipartZip(name, folder, earlier.get((folder, name), {}), last.get((folder, name)))
        for folder, name in sorted(named | earlier.keys(), key=lambda key: (key[0], _natural(key[1])))
    ]


def _natural(name: str) -> Sequence[tuple[int, str]]:
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d*)(\D*)", name)]


def _earlier_parts(last: Path) -> int | None:
    """How many parts stand before the last one, from its end record; None where there is no such record."""
    with last.open("rb") as stream:
        stream.seek(max(0, last.stat().st_size - _LONGEST_END))
        end = stream.read()
    at = end.rfind(_END_RECORD)
    if at < 0 or len(end) < at + 22:
        return None
    (count,) = struct.unpack_from("<H", end, at + 4)
    return 0 if count == _UNKNOWN_COUNT else int(count)
