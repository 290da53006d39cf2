"""Exit codes and progress lines of the commands of data_prep."""

import sys
from collections.abc import Callable, Sequence

from uumamba.runtime.errors import EXIT_SOME_CASES_FAILED, EXIT_WRONG_USE, CaseError, UsageError


def run_command(work: Callable[[], Sequence[CaseError]]) -> int:
    """Run a command's function and return the exit code.

    The code is 0 for success, 3 if some cases failed, 2 for wrong use. Errors are printed on stderr.

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
    """Return a progress callback that prints every n-th count.

    The last count is always printed.

    Args:
        what: the plural noun to print, such as ``"images"``.
        every: n.

    Example:
        >>> print_progress("images")(50, 120)
        images: 50 of 120
    """

    def advance(done: int, total: int) -> None:
        if done % every == 0 or done == total:
            print(f"{what}: {done} of {total}", flush=True)

    return advance
