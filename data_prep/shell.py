"""How a command of data_prep ends that goes on past cases which fail."""

import sys
from collections.abc import Callable, Sequence

from uumamba.runtime.errors import EXIT_SOME_CASES_FAILED, EXIT_WRONG_USE, CaseError, UsageError


def exit_code_of(work: Callable[[], Sequence[CaseError]]) -> int:
    """Do the work, say on stderr what failed, and give the shell's code: 3 for some cases, 2 for a wrong use, else 0.

    Args:
        work: returns an error for each case that failed, or raises UsageError.

    Example:
        >>> exit_code_of(lambda: []), exit_code_of(lambda: [CaseError("a1", "its label is missing", "add it")])
        (0, 3)
    """
    try:
        errors = work()
    except UsageError as wrong_use:
        print(wrong_use, file=sys.stderr)
        return EXIT_WRONG_USE
    for error in errors:
        print(error, file=sys.stderr)
    return EXIT_SOME_CASES_FAILED if errors else 0
