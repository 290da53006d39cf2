"""Exit codes and progress lines of the commands of data_prep."""

import sys
from collections.abc import Callable, Sequence

from uumamba.runtime.errors import EXIT_SOME_CASES_FAILED, EXIT_WRONG_USE, CaseError, UsageError


def run_command(work: Callable[[], Sequence[CaseError]]) -> int:
    """Do the work, print its errors on stderr, and return the exit code: 3 for some cases, 2 for wrong use, else 0.

    Args:
        work: returns an error for each case that failed, or raises UsageError.

    Example:
        >>> error = CaseError("a1", "label", got=7, expected="0-3", fix="correct the label")
        >>> run_command(lambda: []), run_command(lambda: [error])
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


def print_progress(what: str, *, every: int = 50) -> Callable[[int, int], None]:
    """Return a callback that prints how many are done, once for every so many and at the end.

    Example:
        >>> print_progress("images")(50, 120)
        images: 50 of 120
    """

    def advance(done: int, total: int) -> None:
        if done % every == 0 or done == total:
            print(f"{what}: {done} of {total}", flush=True)

    return advance
