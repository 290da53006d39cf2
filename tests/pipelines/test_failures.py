"""Which failures concern the cases that are asked for."""

from pathlib import Path

import pytest

from uumamba.data.case import Case, Manifest
from uumamba.pipelines.failures import failures_among
from uumamba.runtime.errors import CaseError


@pytest.mark.parametrize(
    ("failed", "concerns_fold_0"),
    [
        ("p1_ED", True),
        ("p1_ES", True),
        ("p1", True),
        ("p10_ED", False),
        ("p10_ES", False),
        ("p10", False),
        ("p2_ED", True),
        ("p2", True),
    ],
)
def test_a_failure_concerns_its_patients_fold_and_one_of_an_unknown_patient_any(
    failed: str, concerns_fold_0: bool
) -> None:
    cases = tuple(Case(f"{name}_ED", name, "x", Path("image"), fold=fold) for name, fold in (("p1", 0), ("p10", 1)))
    manifest = Manifest("toy", "MRI", {"LV": 1}, cases)
    failure = CaseError(failed, "it is empty", "scan again")
    assert failures_among(manifest.select(fold=0), [failure], manifest=manifest) == [failure] * concerns_fold_0
