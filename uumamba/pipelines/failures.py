"""``failures.json``: the cases that failed while the others went on, with the reason and the cure."""

from collections.abc import Iterable, Sequence, Set
from pathlib import Path

from uumamba.data.case import Case, Manifest
from uumamba.runtime.errors import CaseError
from uumamba.runtime.files import write_json

FAILURES_NAME = "failures.json"


def record_failures(out: Path, failures: Sequence[CaseError]) -> None:
    """Write ``failures.json`` where there are any, and remove an old one where there are none."""
    path = out / FAILURES_NAME
    if failures:
        write_json(path, [{"case_id": e.case_id, "problem": e.problem, "cure": e.cure} for e in failures])
    else:
        path.unlink(missing_ok=True)


def failures_among(chosen: Iterable[Case], failures: Iterable[CaseError], *, manifest: Manifest) -> list[CaseError]:
    """Failures of the chosen cases' patients, or of patients whose fold and split nobody knows.

    A patient lies in one fold alone, so one bad frame is placed by the patient's other ones.

    Args:
        chosen: of the manifest.
        failures: named after a case, or after a patient who cannot be read at all.
        manifest: every case that is known.
    """
    wanted = {case.patient_id for case in chosen}
    others = {case.patient_id for case in manifest.cases} - wanted
    return [failure for failure in failures if not _names_one_of(others, failure, manifest)]


def _names_one_of(patients: Set[str], failure: CaseError, manifest: Manifest) -> bool:
    own = {case.patient_id for case in manifest.cases if case.case_id == failure.case_id}
    return not patients.isdisjoint(own) or any(f"{failure.case_id}_".startswith(f"{name}_") for name in patients)
