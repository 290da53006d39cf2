"""One function applied to many cases, in this process or in workers.

If a worker process dies, the error names its case.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from uumamba.runtime.case_boundary import attempt
from uumamba.runtime.errors import CaseError

CaseInput = TypeVar("CaseInput")
CaseResult = TypeVar("CaseResult")

SUBMITTED_PER_WORKER = 2
"""One case in progress and one waiting."""


def each_case(
    work: Callable[[CaseInput], CaseResult], items: Mapping[str, CaseInput], *, workers: int = 0
) -> Iterator[tuple[str, CaseResult | CaseError]]:
    """Yield ``(case_id, work(item))`` of every item, in order of completion.

    The failure of a case is yielded, not raised; :func:`uumamba.runtime.case_boundary.attempt` says which errors are.

    A worker that dies (killed, out of memory) breaks its pool and does not name its case. Therefore the few cases in
    progress are repeated, each in its own pool. Most succeed; a case whose worker dies again gives a CaseError.

    Args:
        work: importable, because workers are spawned: forking a process that has run torch can deadlock.
        items: arguments by case.
        workers: number of worker processes; 0 uses this process.
    """
    if workers == 0:
        for case_id, item in items.items():
            yield case_id, attempt(work, item, case_id=case_id)
        return
    waiting = dict(items)
    suspects: dict[str, CaseInput] = {}
    while waiting:
        yield from _run_pool(work, waiting, suspects, workers)
        for case_id, item in suspects.items():
            killed: dict[str, CaseInput] = {}
            yield from _run_pool(work, {case_id: item}, killed, 1)
            if killed:
                yield (
                    case_id,
                    CaseError(
                        case_id,
                        "workers",
                        got="a worker process killed twice",
                        expected="a result of the worker process",
                        fix="free memory or use fewer workers; 0 workers show the system's own error",
                    ),
                )
        suspects.clear()


def _run_pool(
    work: Callable[[CaseInput], CaseResult], waiting: dict[str, CaseInput], suspects: dict[str, CaseInput], workers: int
) -> Iterator[tuple[str, CaseResult | CaseError]]:
    """Process ``waiting`` until it is empty or the pool breaks.

    Afterwards ``suspects`` holds the cases that were in progress.
    """
    running: dict[Future[CaseResult | CaseError], str] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_use_one_thread) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < SUBMITTED_PER_WORKER * workers:
                    case_id = next(iter(waiting))
                    running[pool.submit(attempt, work, waiting[case_id], case_id=case_id)] = case_id
                    suspects[case_id] = waiting.pop(case_id)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    case_id = running.pop(future)
                    del suspects[case_id]
                    yield case_id, result
        except BrokenProcessPool:
            return


def _use_one_thread() -> None:
    """Limit this process to one thread.

    torch is not imported for work that does not need it.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
