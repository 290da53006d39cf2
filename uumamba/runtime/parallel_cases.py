"""One function over many cases, in this process or in workers, with a dead worker pinned to its case."""

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

_AHEAD = 2  # cases handed to each worker: one to work on, one to go on with


def each_case(
    work: Callable[[Item], Result], items: Mapping[str, Item], *, workers: int = 0
) -> Iterator[tuple[str, Result | CaseError]]:
    """Yield ``(case_id, work(item))`` of every item, in order of completion; a CaseError is yielded, not raised.

    A worker that dies (killed, out of memory) breaks its whole pool and does not say what it was working on. The few
    cases that it may have been are therefore tried again one at a time: most succeed, and the one whose worker dies
    again gives a CaseError with its name. The others go on.

    Args:
        work: importable, since workers are spawned: forking a process that has run torch can deadlock.
        items: what to work on, by case.
        workers: processes; 0 works in this one.
    """
    if workers == 0:
        for case_id, item in items.items():
            yield case_id, _attempt(work, item)
        return
    waiting = dict(items)
    suspects: dict[str, Item] = {}
    while waiting:
        yield from _with_pool(work, waiting, suspects, workers)
        while suspects:
            case_id, item = suspects.popitem()
            yield case_id, _alone(work, case_id, item)


def _with_pool(
    work: Callable[[Item], Result], waiting: dict[str, Item], suspects: dict[str, Item], workers: int
) -> Iterator[tuple[str, Result | CaseError]]:
    """Empty ``waiting`` until it is done or the pool breaks; then what was under way is in ``suspects``."""
    running: dict[Future[Result | CaseError], str] = {}
    under_way: dict[str, Item] = {}
    with _pool(workers) as pool:
        while waiting or running:
            try:
                while waiting and len(running) < _AHEAD * workers:
                    case_id = next(iter(waiting))
                    running[pool.submit(_attempt, work, waiting[case_id])] = case_id
                    under_way[case_id] = waiting.pop(case_id)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    case_id = running.pop(future)
                    del under_way[case_id]
                    yield case_id, result
            except BrokenProcessPool:
                suspects.update(under_way)
                return


def _alone(work: Callable[[Item], Result], case_id: str, item: Item) -> Result | CaseError:
    try:
        with _pool(1) as pool:
            return pool.submit(_attempt, work, item).result()
    except BrokenProcessPool:
        cure = "free memory or use fewer workers; with 0 workers the system names the cause"
        return CaseError(case_id, "the process that worked on it was killed, twice", cure)


def _attempt(work: Callable[[Item], Result], item: Item) -> Result | CaseError:
    try:
        return work(item)
    except CaseError as error:
        return error


def _pool(workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_use_one_thread)


def _use_one_thread() -> None:
    """Let processes, not the threads in each, fill the machine; torch is not imported for work that needs none."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
