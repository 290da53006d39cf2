"""Log of finished runs, one JSON line each.

A later call continues with the missing runs.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.result_file import describe_commit
from uumamba.runtime.files import write_text

Measured = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """Settings of one training that determine its result on one machine.

    Attributes:
        setting: the data and the network.
        method: a name of :data:`benchmarks.claims.members.MEMBERS`.
        value: the method's own number, such as rho; None if it has none.
        lr: learning rate of the base optimizer.
        steps: number of steps.
        seed: of data, initialisation and order.
        measures: results to measure: ``"validation"``, or ``"test"`` with all others.
    """

    setting: str
    method: str
    value: float | None
    lr: float
    steps: int
    seed: int
    measures: str


class RunLog:
    """Finished runs of a folder, ``runs.jsonl``, with their commits."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "runs.jsonl"
        self.measured: dict[Run, Measured] = {}
        self.commits: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            self._read()

    def complete(
        self, runs: Iterable[Run], work: Callable[[Run], Measured], *, workers: int, threads: int = 1
    ) -> list[Measured]:
        """Run the missing runs; return the results of all, in order.

        A line is written when a run ends.

        Args:
            runs: the runs; a stored run is read.
            work: function that trains and measures; importable by name, as it is called in another process.
            workers: number of processes.
            threads: number of torch's threads in each process.
        """
        runs = list(runs)
        missing = [run for run in dict.fromkeys(runs) if run not in self.measured]
        begin = time.monotonic()
        with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
            under_way = {pool.submit(work, run): run for run in missing}
            try:
                for count, done in enumerate(as_completed(under_way), start=1):
                    self._add(under_way[done], done.result())
                    print_progress(
                        f"{_describe_run(under_way[done])}: {count} of {len(missing)}, {time.monotonic() - begin:.0f} s"
                    )
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [self.measured[run] for run in runs]

    def _add(self, run: Run, measured: Measured) -> None:
        line = {"run": asdict(run), "measured": measured, "commit": describe_commit()}
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self._store(line)

    def _read(self) -> None:
        text = self.path.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]  # a killed call may have left an incomplete line
        if complete != text:
            self.path.write_text(complete, encoding="utf-8")
        for line in complete.splitlines():
            self._store(json.loads(line))

    def _store(self, line: Mapping[str, Any]) -> None:
        self.measured[Run(**line["run"])] = line["measured"]
        self.commits.add(line["commit"])


def print_progress(text: str) -> None:
    """Print a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def find_kept_log(table: Path | None) -> Path | None:
    """Return the file of finished runs beside a table."""
    return None if table is None else table.with_name(f"{table.stem}_runs.jsonl")


def copy_lines(source: Path | None, target: Path | None) -> None:
    """Add to a log the complete lines of another that it lacks."""
    if source is None or target is None or not source.is_file():
        return
    known = target.read_text(encoding="utf-8").splitlines() if target.is_file() else []
    new = [line for line in source.read_text(encoding="utf-8").splitlines() if line not in set(known)]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_text(target, "".join(f"{line}\n" for line in [*known, *filter(_is_complete, new)]))


def _is_complete(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _describe_run(run: Run) -> str:
    value = "" if run.value is None else f" {run.value:g}"
    return f"{run.setting}, {run.method}{value}, seed {run.seed}, {run.steps} steps"
