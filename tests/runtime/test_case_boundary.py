"""Tests of the boundary around the work on one case."""

import errno
from collections.abc import Callable

import pytest
import torch

from uumamba.runtime.case_boundary import attempt, fail_case_on_error
from uumamba.runtime.errors import CaseError, UsageError, UumambaError
from uumamba.runtime.files import OutputError
from uumamba.runtime.memory_shortage import OutOfMemoryError
from uumamba.runtime.parallel_cases import each_case
from uumamba.runtime.stop import StoppedOnRequest

READING = [
    RuntimeError("GDCM: no pixels"),
    ValueError("negative size"),
    KeyError("PixelSpacing"),
    MemoryError(),
    OverflowError("too large"),
    RecursionError("too deep"),
    PermissionError(errno.EACCES, "Permission denied", "scan.nii.gz"),
    OSError(errno.ENAMETOOLONG, "File name too long"),
]
EVERYONES = [
    OutputError("out/a.npy could not be written: No space left on device."),
    UsageError("--out", got="a file", expected="a folder"),
    StoppedOnRequest("Stopped by SIGTERM"),
]


def raise_(error: Exception) -> None:
    raise error


def read(error: Exception) -> None:
    with fail_case_on_error("p1", "image"):
        raise error


@pytest.mark.parametrize("error", READING, ids=lambda error: type(error).__name__)
def test_any_error_while_a_case_is_read_is_the_failure_of_that_case(error: Exception) -> None:
    failure = attempt(read, error, case_id="p1")
    assert isinstance(failure, CaseError)
    assert failure.case_id == "p1"
    assert type(error).__name__ in str(failure) or str(error.args[-1]) in str(failure) or failure.key == "case_id"
    assert failure.fix


@pytest.mark.parametrize("error", EVERYONES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("work", [read, raise_])
def test_an_error_that_concerns_all_cases_ends_the_work(error: UumambaError, work: Callable[..., None]) -> None:
    with pytest.raises(type(error), match=r"out|Stopped"):
        attempt(work, error, case_id="p1")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), OutOfMemoryError("one window"), torch.OutOfMemoryError("CUDA out of memory."), OSError(36, "long")],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_in_a_network_and_a_long_name_are_failures_of_the_case(error: Exception) -> None:
    assert isinstance(attempt(raise_, error, case_id="p1"), CaseError)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2"), TypeError("no"), OSError(errno.ENOSPC, "no space")])
def test_a_programming_error_in_a_network_keeps_its_name(error: Exception) -> None:
    with pytest.raises(type(error), match=r"mat1|no"):
        attempt(raise_, error, case_id="p1")


def test_a_failure_holds_no_array_of_its_case() -> None:
    failure = attempt(read, ValueError("odd"), case_id="p1")
    assert isinstance(failure, CaseError)
    assert (failure.__traceback__, failure.__cause__, failure.__context__) == (None, None, None)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_other_cases_are_done_when_some_raise_errors_of_any_type(workers: int) -> None:
    errors = {type(error).__name__: error for error in READING}
    outcomes = dict(each_case(read, errors, workers=workers))
    assert outcomes.keys() == errors.keys()
    assert all(isinstance(outcome, CaseError) for outcome in outcomes.values())
