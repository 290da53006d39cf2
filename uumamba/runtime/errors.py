"""Errors that a user can cause and fix.

Each has the exit code of the command line.
"""

import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

EXIT_FAILED = 1
EXIT_WRONG_USE = 2
EXIT_SOME_CASES_FAILED = 3
EXIT_STOPPED_RESUMABLE = 75

LONGEST_QUOTE = 800
"""Characters of each part of a message; a value from a file may have millions."""
MOST_ELEMENTS_QUOTED = 8
"""Elements of an array that are shown instead of its shape."""
MOST_ENTRIES_QUOTED = 1000
"""Entries of nested lists that are shown in full; nested aliases of YAML can stand for more than fit into memory."""


class UumambaError(Exception):
    """Base class of all errors of uumamba.

    The command line shows the message in one or two lines, without a traceback.
    """

    exit_code = EXIT_FAILED

    def __init__(self, *args: object, exit_code: int | None = None) -> None:
        super().__init__(*args)
        if exit_code is not None:
            self.exit_code = exit_code


class EndedWithAnother(UumambaError):
    """Error of a process whose group was ended by another process.

    The other process has already reported the reason.
    """


class InputError(UumambaError, ValueError):
    """Base of :class:`UsageError` and :class:`CaseError`, with the parts as fields."""

    def __init__(self, key: str, *, got: object, expected: str, fix: str = "") -> None:
        super().__init__(key, got, expected, fix)
        self.key = key
        self.got = got
        self.expected = expected
        self.fix = fix

    def __str__(self) -> str:
        shown = "''" if isinstance(self.got, str) and not self.got else quote(self.got)  # an array has no truth value
        fix = f" Fix: {quote(self.fix)}." if self.fix else ""
        return f"{quote(self.key)}: got {shown}, expected {quote(self.expected)}.{fix}"

    def __reduce__(self) -> Any:  # by default an exception with keyword-only arguments cannot be unpickled
        return Exception.__new__, (type(self), *self.args), self.__dict__


class UsageError(InputError):
    """Wrong option, argument, path or configuration.

    Args:
        key: the option, argument or path: ``"optim.rho"``, ``"--device"``, ``"rho"``.
        got: the value found; an empty string is printed as ``''``.
        expected: valid values, without a full stop.
        fix: what to do, without a full stop; optional if ``expected`` is enough.

    Example:
        >>> print(UsageError("rho", got=-1, expected="a number of at least 0"))
        rho: got -1, expected a number of at least 0.
        >>> print(UsageError("--fold", got="7", expected="0-4, all or cv", fix="choose a listed fold"))
        --fold: got 7, expected 0-4, all or cv. Fix: choose a listed fold.
    """

    exit_code = EXIT_WRONG_USE

    def within(self, section: str) -> "UsageError":
        """Return the same error with its key inside a configuration section.

        In the section ``optim`` the key ``rho`` becomes ``optim.rho``.

        A key that already starts at the top level stays as it is.
        """
        key = self.key if self.key.startswith(f"{section}.") else ".".join(filter(None, (section, self.key)))
        return UsageError(key, got=self.got, expected=self.expected, fix=self.fix)


class CaseError(InputError):
    """Error in one case; the other cases are processed.

    Args:
        case_id: the case, as named in the manifest or by its file.
        key: the part of the case: ``"label"``, ``"affine"``, ``"image"``.
        got: the value found.
        expected: valid values, without a full stop.
        fix: what to do, without a full stop.

    Example:
        >>> print(CaseError("patient001_frame01", "label", got="value 7", expected="0-3", fix="correct the label"))
        patient001_frame01: label: got value 7, expected 0-3. Fix: correct the label.
    """

    def __init__(self, case_id: str, key: str, *, got: object, expected: str, fix: str) -> None:
        super().__init__(key, got=got, expected=expected, fix=fix)
        self.case_id = case_id

    def __str__(self) -> str:
        return f"{quote(self.case_id)}: {super().__str__()}"


def quote(value: object) -> str:
    r"""Return a value as short, printable text on one line.

    The middle of a long text is left out, and characters that would change the line or the terminal are escaped. An
    array is described by its shape unless it is small, a function or a class by its name, and an object whose text has
    several lines or an address by its class.

    Example:
        >>> quote("case\x1b[31m\n"), len(quote("a" * 10_000)) <= LONGEST_QUOTE
        ('case\\x1b[31m\\n', True)
    """
    text = _describe_object(value)
    if text is None:
        text = str(value) if _count_entries(value, MOST_ENTRIES_QUOTED) < MOST_ENTRIES_QUOTED else reprlib.repr(value)
    if len(text) > LONGEST_QUOTE:
        text = _leave_out_middle(text)
    if text.isprintable():
        return text
    escaped = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return escaped if len(escaped) <= LONGEST_QUOTE else _leave_out_middle(escaped)


def _describe_object(value: object) -> str | None:
    """Describe a large array, function, class or object; None for other values."""
    if isinstance(value, str | int | float | Mapping | list | tuple | set | frozenset | None):
        return None
    kind, shape = type(value).__name__, getattr(value, "shape", None)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(shape, tuple) and hasattr(value, "dtype"):
        return None if math.prod(shape) <= MOST_ELEMENTS_QUOTED else f"{kind} of shape {tuple(shape)}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    text = str(value)
    return f"an object of class {kind}" if "\n" in text or " at 0x" in text else None


def _leave_out_middle(text: str) -> str:
    kept = (LONGEST_QUOTE - 5) // 2
    return f"{text[:kept]} ... {text[-kept:]}"


def _count_entries(value: object, limit: int) -> int:
    """Count the entries of nested containers, at most up to ``limit``."""
    waiting, count = [value], 0
    while waiting and count < limit:
        each, count = waiting.pop(), count + 1
        if isinstance(each, Mapping):
            waiting += _take((part for pair in each.items() for part in pair), limit)
        elif isinstance(each, list | tuple | set | frozenset):
            waiting += _take(each, limit)
    return count


def _take(entries: Iterable[object], limit: int) -> list[object]:
    return [entry for entry, _ in zip(entries, range(limit), strict=False)]


def require(condition: object, key: str, *, got: object, expected: str, fix: str = "") -> None:
    """Raise a :class:`UsageError` unless a condition is true.

    Example:
        >>> require(0.1 >= 0, "rho", got=0.1, expected="a number of at least 0")
    """
    if not condition:
        raise UsageError(key, got=got, expected=expected, fix=fix)


def require_case(condition: object, case_id: str, key: str, *, got: object, expected: str, fix: str) -> None:
    """Raise a :class:`CaseError` unless a condition is true.

    Example:
        >>> require_case(True, "patient001_frame01", "label", got=3, expected="0-3", fix="correct the label")
    """
    if not condition:
        raise CaseError(case_id, key, got=got, expected=expected, fix=fix)
