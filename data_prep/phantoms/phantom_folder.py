"""Writer of phantom cases: folder checks, worker processes and command line."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.shell import print_progress, run_command
from uumamba.runtime.errors import CaseError, require
from uumamba.runtime.parallel_cases import each_case

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Order:
    """One case to write: its folder, its number and the phantom's seed."""

    folder: Path
    number: int
    seed: int


def check_no_others(folder: Path, found: Iterable[Path], own: Iterable[Path]) -> None:
    """Raise if a folder holds files of another phantom.

    Args:
        folder: named in the error.
        found: paths in the folder.
        own: paths that this phantom will write.

    Raises:
        UsageError: some of ``found`` are not in ``own``.
    """
    others = sorted(set(found) - set(own))
    require(
        not others,
        "folder",
        got=others[0] if others else "",
        expected=f"only files of this phantom in {folder}",
        fix="choose an empty folder",
    )


def write_cases(write: Callable[[Order], None], orders: Sequence[Order], *, workers: int, progress: Progress) -> None:
    """Write all cases, in this process or in workers.

    Args:
        write: function that writes one case; workers need an importable one.
        orders: the cases.
        workers: number of worker processes; below 2, this process is used.
        progress: called with the number of cases written and of all.
    """
    cases = {str(order.number): order for order in orders}
    for written, (_, failed) in enumerate(each_case(write, cases, workers=workers if workers > 1 else 0), start=1):
        if isinstance(failed, CaseError):
            raise failed
        progress(written, len(orders))


def run_phantom_command(
    write: Callable[..., Path],
    arguments: Sequence[str] | None = None,
    *,
    module: str,
    description: str,
    cases: int,
    has_test_cases: bool = False,
    noun: str = "cases",
) -> int:
    """Write a phantom from the shell, and return the exit code.

    Args:
        write: called with the folder and the options.
        arguments: arguments of the command; None for those of the shell.
        module: name for ``python -m``.
        description: first sentence of the help.
        cases: default number of cases.
        has_test_cases: whether ``write`` takes ``test_cases``.
        noun: plural of what is counted; ``"patients"`` where ``write`` takes ``patients`` and ``test_patients``.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"Example: python -m {module} phantom --{noun} {cases} --seed 0 --workers 2",
    )
    parser.add_argument("folder", metavar="out", type=Path, help="output folder; empty, or with the same phantom")
    parser.add_argument(f"--{noun}", type=int, default=cases, help=f"number of {noun} (default: {cases})")
    parser.add_argument("--seed", type=int, default=0, help=f"another seed gives other {noun} (default: 0)")
    parser.add_argument("--workers", type=int, default=0, help="worker processes; 0 uses this process (default: 0)")
    if has_test_cases:
        further = f"further {noun} for the test set (default: 0)"
        parser.add_argument(f"--test-{noun}", type=int, default=0, help=further)
    options = vars(parser.parse_args(arguments))

    def work() -> list[CaseError]:
        write(**options, progress=print_progress(noun, every=1))
        return []

    return run_command(work)
