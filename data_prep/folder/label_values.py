"""Values in label maps whose structures have no names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.raw_folder import collect
from uumamba.data.case import Case
from uumamba.data.chunks import find_distinct_values
from uumamba.data.label_scheme import MAX_LABEL_VALUE, MAX_STRUCTURES
from uumamba.data.open_scan import open_scan
from uumamba.data.scan import INTEGER_TOLERANCE
from uumamba.runtime.case_boundary import attempt, fail_case_on_error
from uumamba.runtime.errors import CaseError, require_case
from uumamba.runtime.observer import to_stderr
from uumamba.runtime.stop import StopRequest


def find_label_values(cases: Sequence[Case]) -> tuple[set[int], list[CaseError]]:
    """Find the values above 0 in the label maps of cases.

    Every label map is read.

    Returns:
        The values, and an error for each label map that cannot be read or is none.

    Raises:
        StoppedOnRequest: a stop was requested.
    """
    values: set[int] = set()
    labelled = [case for case in cases if case.label is not None]
    to_stderr(f"labels: reading the values of {len(labelled)} label maps, as dataset.structures gives no names")
    with StopRequest() as stop:

        def add_values(case: Case) -> None:
            assert case.label is not None
            stop.raise_if_requested("while reading label values; run the same command to start again")
            found = attempt(lambda path: _read_values(path, case.case_id), case.label, case_id=case.case_id)
            if isinstance(found, CaseError):
                raise found
            values.update(found)

        _, failures = collect(add_values, labelled)
    return values - {0}, failures


def _read_values(path: Path, case_id: str) -> set[int]:
    with fail_case_on_error(case_id, "label"):
        found = find_distinct_values(open_scan(path, case_id=case_id).read().array)
        whole = np.round(found)
        is_whole = np.isfinite(found).all() and np.abs(found - whole).max() <= INTEGER_TOLERANCE
        require_case(
            is_whole and whole.min() >= 0 and whole.max() <= MAX_LABEL_VALUE and whole.size <= MAX_STRUCTURES + 1,
            case_id,
            "label",
            got=f"{found.size} values from {found.min():g} to {found.max():g}",
            expected=f"0 and up to {MAX_STRUCTURES} whole numbers from 1 to {MAX_LABEL_VALUE}",
            fix="give the label map of this image (or exchange image and label)",
        )
    return {int(value) for value in whole}
