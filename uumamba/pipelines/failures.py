"""``failures.json``: the cases that failed while the others went on, with the reason and the cure."""

from collections.abc import Sequence
from pathlib import Path

from uumamba.errors import CaseError
from uumamba.files import write_json

FAILURES_NAME = "failures.json"


def record_failures(out: Path, failures: Sequence[CaseError]) -> None:
    """Write ``failures.json`` where there are any, and remove an old one where there are none."""
    path = out / FAILURES_NAME
    if failures:
        write_json(path, [{"case_id": e.case_id, "problem": e.problem, "cure": e.cure} for e in failures])
    else:
        path.unlink(missing_ok=True)
