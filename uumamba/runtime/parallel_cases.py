"""One function over many cases, in this process or in workers; a dead worker is traced to its case."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from uumamba.runtime.errors import CaseError

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 2  # cases submitted per worker: one in progress, one waiting


def each_case(
    work: Callable[[Item], Result], items: Mapping[str, Item], *, workers: int = 0
) -> Iterator[tuple[str, Result | CaseError]]:
    """Yield ``(case_id, work(item))`` of every item, in order of completion; a CaseError is yielded, not raised.

    A worker that dies (killed, out of memory) breaks its whole pool and does not name its case. The few cases in
    progress are therefore repeated one at a time: most succeed, and the one whose worker dies again gives a CaseError.
    All others go on.

    Args:
        work: importable, because workers are spawned: forking a process that has run torch can deadlock.
        items: arguments by case.
        workers: processes; 0 works in this one.
    """
    if workers == 0:
        for case_id, item in items.items():
            yield case_id, _attempt(work, item)
    waiting = dict(items) if workers else {}
    suspects: dict[str, Item] = {}
    while waiting:
        yield from _run_pool(work, waiting, suspects, workers)
        while suspects:
            case_id, item = suspects.popitem()
            yield case_id, _retry(work, case_id, item)


def _run_pool(
    work: Callable[[Item], Result], waiting: dict[str, Item], suspects: dict[str, Item], workers: int
) -> Iterator[tuple[str, Result | CaseError]]:
    """Empty ``waiting`` until it is done or the pool breaks; then ``suspects`` holds the cases in progress."""
    running: dict[Future[Result | CaseError], str] = {}
    with _pool(workers) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < _AHEAD * workers:
                    case_id = next(iter(waiting))
                    running[pool.submit(_attempt, work, waiting[case_id])] = case_id
                    suspects[case_id] = waiting.pop(case_id)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    case_id = running.pop(future)
                    del suspects[case_id]
                    yield case_id, result
        except BrokenProcessPool:
            return


def _retry(work: Callable[[Item], Result], case_id: str, item: Item) -> Result | CaseError:
    try:
        with _pool(1) as pool:
            return pool.submit(_attempt, work, item).result()
    except BrokenProcessPool:
        return CaseError(
            case_id,
            "worker process",
            got="killed twice",
            expected="a result",
            fix="free memory or use fewer workers; with 0 workers the system names the cause",
        )


def _attempt(work: Callable[[Item], Result], item: Item) -> Result | CaseError:
    try:
        return work(item)
    except CaseError as error:
        return error


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_use_one_thread)


def _use_one_thread() -> None:
    """Use one thread per process; torch is not imported for work that does not need it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
