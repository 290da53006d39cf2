"""Errors that a user can cause and fix, each with the exit code of the command line."""

from typing import Any

EXIT_FAILED = 1
EXIT_WRONG_USE = 2
EXIT_SOME_CASES_FAILED = 3
EXIT_STOPPED_RESUMABLE = 75


class UumambaError(Exception):
    """Base of all our errors; the command line shows it in one or two lines, without a traceback."""

    exit_code = EXIT_FAILED


class EndedWithAnother(UumambaError):
    """Error of a process whose group ended because of another process, which has already reported the reason."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(UumambaError, ValueError):
    """Wrong option, argument, path or configuration.

    Args:
        key: the option, argument or path: ``"optim.rho"``, ``"--device"``, ``"rho"``.
        got: the value found; a string is printed as it is, an empty one as ``''``.
        expected: valid values, without a full stop.
        fix: what to do, without a full stop; may be left out where ``expected`` says it all.

    Example:
        >>> print(UsageError("rho", got=-1, expected="a number of at least 0"))
        rho: got -1, expected a number of at least 0.
        >>> print(UsageError("--fold", got="7", expected="0-4, all or cv", fix="choose one of these"))
        --fold: got 7, expected 0-4, all or cv. Fix: choose one of these.
    """

    exit_code = EXIT_WRONG_USE

    def __init__(self, key: str, *, got: object = None, expected: str = "", fix: str = "") -> None:
        super().__init__(key, got, expected, fix)
        self.key = key
        self.got = got
        self.expected = expected
        self.fix = fix

    def __str__(self) -> str:
        return describe(self.key, got=self.got, expected=self.expected, fix=self.fix)

    def within(self, section: str) -> "UsageError":
        """Return the same error with its key inside a section of the configuration: ``rho`` becomes ``optim.rho``.

        A key that already starts at the top level stays as it is.
        """
        key = ".".join(filter(None, (section, self.key))) if not self.key.startswith(f"{section}.") else self.key
        return UsageError(key, got=self.got, expected=self.expected, fix=self.fix)

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.args), self.__dict__


class CaseError(UumambaError, ValueError):
    """One case that breaks a rule; the other cases go on.

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

    def __init__(
        self, case_id: str, key: str, cure: str = "", *, got: object = None, expected: str = "", fix: str = ""
    ) -> None:
        super().__init__(case_id, key, got, expected, fix)
        self.case_id = case_id
        self.key = key
        self.got = got
        self.expected = expected
        self.fix = fix or cure

    def __str__(self) -> str:
        if not self.expected:
            return f"{self.case_id}: {self.key}; {self.fix}."
        return f"{self.case_id}: {describe(self.key, got=self.got, expected=self.expected, fix=self.fix)}"

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self.args), self.__dict__

    @property
    def problem(self) -> str:
        """Key, value found and valid values, without the case and the fix."""
        return describe(self.key, got=self.got, expected=self.expected, fix="").removesuffix(".")

    @property
    def cure(self) -> str:
        """The fix."""
        return self.fix


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


def describe(key: str, *, got: object, expected: str, fix: str) -> str:
    """Format the parts of an error as ``key: got X, expected Y. Fix: Z.``"""
    if not expected:
        return key
    shown = got if isinstance(got, str) and got else repr(got) if isinstance(got, str) else str(got)
    return f"{key}: got {shown}, expected {expected}.{f' Fix: {fix}.' if fix else ''}"


def _rebuild(kind: type[Exception], args: tuple[Any, ...]) -> Exception:
    return kind.__new__(kind, *args)
