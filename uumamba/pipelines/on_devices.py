"""Jobs on several devices at once: one process a device, and the first error ends the rest."""

import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from time import monotonic
from typing import Protocol, TypeVar

import torch

from uumamba.runtime.errors import EXIT_FAILED, EXIT_STOPPED_RESUMABLE, UumambaError
from uumamba.runtime.stop import StoppedOnRequest, StopRequest

Job = TypeVar("Job", contravariant=True)

SECONDS_TO_END = 60.0
"""What the others have to write a checkpoint when one has failed; then they are killed."""
_LOOK_EVERY = 0.2  # seconds, for a request to stop


class Work(Protocol[Job]):
    """What is done on each device; it must be picklable, so no lambda."""

    def __call__(self, job: Job, *, device: str, say: Callable[[str], None]) -> None:
        """Do one job, telling a person by ``say``."""


class JobFailedError(UumambaError):
    """A job on one of several devices failed; the exit code is the one that it would have ended with alone."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class _Outcome:
    """How a job ended: with an error unless ``exit_code`` is 0."""

    message: str = ""
    exit_code: int = 0
    notes: str = ""


@dataclass
class _Running:
    """A process at work."""

    name: str
    device: str
    process: SpawnProcess
    connection: Connection
    outcome: _Outcome | None = None
    asked_to_stop: bool = False


def on_devices(work: Work[Job], jobs: Mapping[str, Job], devices: Sequence[str], *, say: Callable[[str], None]) -> None:
    """Do every job, one process for each, as many at once as there are devices; the cores are shared out.

    When one fails, the others are asked to stop as by a cluster (SIGTERM), so that what can be resumed keeps its state;
    after 60 seconds they are killed. A request to stop this process, and Ctrl-C, are handed on to all, and all end
    when this process dies.

    Args:
        work: called in the processes.
        jobs: by a name for people, in order.
        devices: torch's names; one twice runs two jobs there at once.
        say: called with what the jobs say, their name before it.

    Raises:
        JobFailedError: a job failed, or its process was killed.
        StoppedOnRequest: this process or one of the others was asked to stop.
    """
    waiting, free, running, done = dict(jobs), list(devices), list[_Running](), 0
    threads = max(1, torch.get_num_threads() // len(devices))
    with StopRequest() as stop, _ended(running):
        while (waiting and stop.asked is None) or running:
            while waiting and free and stop.asked is None:
                name = next(iter(waiting))
                running.append(_start(work, name, waiting.pop(name), free.pop(0), threads))
            if stop.asked is not None:
                _ask_to_stop(running)
            for ended in _look(running, say):
                running.remove(ended)
                free.append(ended.device)
                done += _is_done(ended, stop)
        if done < len(jobs):
            stop.raise_if_requested(f"with {done} of {len(jobs)} done; go on with --resume")


def _start(work: Work[Job], name: str, job: Job, device: str, threads: int) -> _Running:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_in_process, args=(work, job, device, threads, theirs), name=name)
    process.start()
    theirs.close()  # so that its end shows when the process dies
    return _Running(name, device, process, ours)


def _look(running: Sequence[_Running], say: Callable[[str], None]) -> list[_Running]:
    """Pass on what was said, and give those that have ended."""
    ended = []
    by_connection = {each.connection: each for each in running}
    for ready in wait(list(by_connection), timeout=_LOOK_EVERY):
        each = by_connection[ready]  # type: ignore[index]  # what was given comes back
        try:
            message = each.connection.recv()
        except EOFError:
            each.process.join()
            ended.append(each)
            continue
        if isinstance(message, _Outcome):
            each.outcome = message
        else:
            say(f"{each.name}: {message}")
    return ended


def _is_done(ended: _Running, stop: StopRequest) -> bool:
    """Whether a job is; False alone where it was stopped on request, for a failure is raised."""
    outcome = ended.outcome
    if outcome is not None and outcome.exit_code == 0:
        return True
    if stop.asked is not None:
        return False
    if outcome is None:
        code = ended.process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with the exit code {code}"
        raise JobFailedError(
            f"{ended.name}: its process on {ended.device} was ended {how}, often because memory ran out; free some and "
            "go on with --resume.",
            EXIT_FAILED,
        )
    message = f"{ended.name}: {outcome.message}"
    if outcome.exit_code == EXIT_STOPPED_RESUMABLE:
        raise StoppedOnRequest(message)
    error = JobFailedError(message, outcome.exit_code)
    if outcome.notes:
        error.add_note(outcome.notes)
    raise error


def _ask_to_stop(running: Sequence[_Running]) -> None:
    for each in running:
        if each.outcome is None and not each.asked_to_stop:
            each.asked_to_stop = True
            each.process.terminate()


@contextmanager
def _ended(running: list[_Running]) -> Iterator[None]:
    """Leave no process behind, however this ends."""
    try:
        yield
    finally:
        _ask_to_stop(running)
        until = monotonic() + SECONDS_TO_END
        while running and monotonic() < until:
            for ended in _look(running, lambda sentence: None):
                running.remove(ended)
        for left in running:
            left.process.kill()
            left.process.join()


def _in_process(work: Work[Job], job: Job, device: str, threads: int, connection: Connection) -> None:
    """The life of one process; what it raises is handed over as text."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all at once; the first process hands it on
    _stop_with_parent()
    torch.set_num_threads(threads)
    say = partial(_send, connection)
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    outcome = _Outcome()
    try:
        work(job, device=device, say=say)
    except UumambaError as error:
        outcome = _Outcome(str(error), error.exit_code, traceback.format_exc())
    except Exception as error:  # noqa: BLE001 handed to the first process, which raises it
        outcome = _Outcome(f"{type(error).__name__}: {error}", EXIT_FAILED, traceback.format_exc())
    say(outcome)


def _send(connection: Connection, message: str | _Outcome) -> None:
    with suppress(BrokenPipeError):  # nobody listens any more, and this process is about to be stopped
        connection.send(message)


def _stop_with_parent() -> None:
    """Stop as on a request when the first process dies, which nobody would wait for."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
