"""Parts of a batch, such as the tasks of a job array.

No part may lose another's results, so each leaves its failures in a file of its own, and writes the common files
from the files of all cases.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter

from uumamba.data.case_files import ImagePath
from uumamba.data.stored_json import read_json
from uumamba.pipelines.datasets import FAILURE_KEYS, FAILURES_NAME, list_failures
from uumamba.pipelines.prediction.case_record import read_record
from uumamba.runtime.errors import CaseError, UsageError
from uumamba.runtime.files import make_folder, remove_file, write_json

PARTS_NAME = ".parts"
_PART = re.compile(r"([1-9]\d{0,5})/([1-9]\d{0,5})")


@dataclass(frozen=True)
class Part:
    """Part ``number`` of ``count``, both from 1 on."""

    number: int
    count: int

    @classmethod
    def parse(cls, given: str) -> Self:
        """Read ``K/N``.

        Raises:
            UsageError: K is not from 1 to N.

        Example:
            >>> Part.parse("2/5")
            Part(number=2, count=5)
        """
        found = _PART.fullmatch(given)
        number, count = map(int, found.groups()) if found else (1, 0)
        if number > count:
            raise UsageError("--part", got=given, expected="K/N with K from 1 to N, such as 2/5")
        return cls(number, count)

    def select(self, cases: Mapping[str, ImagePath]) -> dict[str, ImagePath]:
        """Return every N-th case from the K-th on, by case id.

        Example:
            >>> Part(2, 2).select({"c": Path("c"), "a": Path("a"), "b": Path("b")})
            {'b': PosixPath('b')}
        """
        own = set(sorted(cases)[self.number - 1 :: self.count])
        return {case_id: image for case_id, image in cases.items() if case_id in own}


def record_part_failures(out: Path, failures: Sequence[CaseError], part: Part, cases: Mapping[str, Any]) -> None:
    """Write a part's failures, and ``failures.json`` from those of all parts.

    Args:
        out: the folder of the outputs.
        failures: failures of this part.
        part: the part.
        cases: all cases of the batch; failures of other cases, or of cases predicted since, are dropped.
    """
    folder = make_folder(out / PARTS_NAME)
    write_json(folder / f"{part.number}_of_{part.count}.json", list_failures(failures))
    ids = {case_id: number for number, case_id in enumerate(cases)}

    def write() -> None:
        rows = [row for path in folder.glob(f"[0-9]*_of_{part.count}.json") for row in read_failures(path)]
        kept = [row for row in rows if row["case_id"] in ids and read_record(out, row["case_id"]) is None]
        if kept:
            write_json(out / FAILURES_NAME, sorted(kept, key=lambda row: ids[row["case_id"]]))
        else:
            remove_file(out / FAILURES_NAME)

    write_for_all_parts(out, write)


def write_for_all_parts(out: Path, write: Callable[[], None]) -> None:
    """Write a common file of all parts, without a lock.

    Another part may end and write after this one has read, and before this one writes. So the file is written again
    until no other part has ended meanwhile. Locks are missing on the disks of many clusters.

    Args:
        out: the folder of the outputs; in ``.parts``, each part has left a file at its end, before this call.
        write: reads the files of all cases and writes the common one.
    """
    while True:
        before = _list_ended(out)
        write()
        if _list_ended(out) == before:
            return


def _list_ended(out: Path) -> dict[str, tuple[int, int]]:
    found = {}
    for path in (out / PARTS_NAME).glob("[0-9]*.json"):
        with suppress(FileNotFoundError):
            state = path.stat()
            found[path.name] = (state.st_mtime_ns, state.st_ino)
    return found


def read_failures(path: Path) -> list[dict[str, str]]:
    """Read the failures of all cases or of a part.

    A missing or damaged file has none.
    """
    try:
        rows = read_json(path, TypeAdapter(list[dict[str, str]]), expected="failed cases", fix="")
    except UsageError:
        return []
    return [row for row in rows if row.keys() >= {*FAILURE_KEYS}]
