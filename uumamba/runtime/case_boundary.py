"""Boundary around the work on one case.

It decides which errors are the failure of that case and which end the work. Errors of uumamba keep their meaning: a
:class:`CaseError` is the failure of its case; a :class:`UsageError`, an :class:`OutputError` (full disk) and a stop
request concern all cases.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from uumamba.runtime.errors import CaseError, UumambaError
from uumamba.runtime.files import NAME_ERRORS, find_read_fix
from uumamba.runtime.memory_shortage import OutOfMemoryError, is_out_of_memory, summarize_error

Item = TypeVar("Item")
Result = TypeVar("Result")

_RESTORE = "restore the file from its source, or leave out the case"


def attempt(work: Callable[[Item], Result], item: Item, *, case_id: str) -> Result | CaseError:
    """Return ``work(item)``, or the failure of this case.

    The failure is a CaseError, too little memory, or a name that the disk does not take.

    Raises:
        Exception: any other error, such as a programming error in a network.
    """
    try:
        with fail_case_on_shortage(case_id):
            return work(item)
    except CaseError as error:
        # Their stack frames hold the arrays of the case, and a list of failures would keep them in memory.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)


@contextmanager
def fail_case_on_error(case_id: str, key: str = "file") -> Iterator[None]:
    """Turn every error of a block into the failure of a case.

    The block reads, prepares or encodes a scan: libraries raise errors of any type for a damaged file. A network is not
    called in such a block, since an error in its code would be the failure of each case.

    Args:
        case_id: the case.
        key: part of the case that is used.

    Raises:
        CaseError: in place of any error that is not one of uumamba; it names the type.

    Example:
        >>> with fail_case_on_error("patient001"):
        ...     raise RuntimeError("GDCM: no pixels")
        Traceback (most recent call last):
            ...
        uumamba.runtime.errors.CaseError: patient001: file: got RuntimeError: GDCM: no pixels, expected a readable ...
    """
    try:
        with fail_case_on_shortage(case_id):
            yield
    except (UumambaError, Warning):  # a warning is an error where the user says so, for all cases
        raise
    except OSError as error:
        got = f"{error.filename or ''} ({error.strerror or error})".strip()
        fix = find_read_fix(error, otherwise=_RESTORE)
        raise CaseError(case_id, key, got=got, expected="a readable file", fix=fix) from error
    except Exception as error:
        raise CaseError(
            case_id,
            key,
            got=f"{type(error).__name__}: {summarize_error(error)}",
            expected="a readable case",
            fix=_RESTORE,
        ) from error


@contextmanager
def fail_case_on_shortage(case_id: str) -> Iterator[None]:
    """Turn too little memory or a bad name into a case's failure.

    Raises:
        CaseError: in place of an error of these two kinds.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NAME_ERRORS:
            raise
        raise CaseError(
            case_id, "case_id", got=error.strerror, expected="a name that the disk takes", fix="rename the file"
        ) from error
    except (OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not (isinstance(error, OutOfMemoryError) or is_out_of_memory(error)):
            raise
        raise CaseError(
            case_id,
            "memory",
            got=f"{type(error).__name__}: {summarize_error(error)}",
            expected="a case that fits into memory",
            fix="free memory, use fewer workers, or crop or leave out the case",
        ) from error
