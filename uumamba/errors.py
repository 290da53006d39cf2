"""Errors that a user can cause and cure, each with the exit code the command line ends with."""

EXIT_FAILED = 1
EXIT_WRONG_USE = 2
EXIT_SOME_CASES_FAILED = 3
EXIT_STOPPED_RESUMABLE = 75


class UumambaError(Exception):
    """One sentence that names the thing, what was found and the cure; shown without a traceback."""

    exit_code = EXIT_FAILED


class EndedWithAnother(UumambaError):
    """Another process of a group ended and says why, so this one ends with its exit code and in silence."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class UsageError(UumambaError, ValueError):
    """What was asked for cannot be done: a wrong option, path or configuration."""

    exit_code = EXIT_WRONG_USE


class CaseError(UumambaError, ValueError):
    """One case breaks a rule; other cases go on.

    Args:
        case_id: the case, as it stands in the manifest or the file's name.
        problem: the rule and what was found, without a full stop.
        cure: what to do about it, without a full stop.

    Example:
        >>> str(CaseError("patient001_frame01", "label holds the value 7, known are 0-3", "correct the label"))
        'patient001_frame01: label holds the value 7, known are 0-3; correct the label.'
    """

    def __init__(self, case_id: str, problem: str, cure: str) -> None:
        super().__init__(case_id, problem, cure)
        self.case_id = case_id
        self.problem = problem
        self.cure = cure

    def __str__(self) -> str:
        return f"{self.case_id}: {self.problem}; {self.cure}."
