"""Jobs on several devices in parallel, one process per job.

The first error ends all jobs.
"""

import multiprocessing
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from time import monotonic
from typing import Any

import torch

from uumamba.runtime.errors import EXIT_FAILED, EXIT_STOPPED_RESUMABLE, UumambaError
from uumamba.runtime.stop import StoppedOnRequest, StopRequest

SECONDS_TO_END = 60.0
"""Time for the other jobs to write a checkpoint after a failure, before they are killed."""
_POLL_SECONDS = 0.2


Work = Callable[..., None]
"""Function ``work(job, *, device, say)`` that does one job; picklable, so no lambda. ``say`` prints a message."""


class JobFailedError(UumambaError):
    """Failure of a job on one of several devices.

    Its exit code is the one that the job would have in a single process.
    """


@dataclass
class _Outcome:
    """End of a job: an error unless ``exit_code`` is 0."""

    message: str = ""
    exit_code: int = 0
    notes: str = ""


@dataclass
class _Running:
    """Process of a job, and the connection to it."""

    name: str
    device: str
    process: SpawnProcess
    connection: Connection
    outcome: _Outcome | None = None
    got_stop_request: bool = False


def run_on_devices(work: Work, jobs: Mapping[str, Any], devices: Sequence[str], *, say: Callable[[str], None]) -> None:
    """Run each job in its own process, one job per device.

    The processes share the CPU cores.

    When a job fails, the others get a stop request like a cluster's (SIGTERM), so that resumable work keeps its state;
    after 60 seconds they are killed. A stop request to this process, and Ctrl-C, are passed on to all jobs. All jobs
    end when this process ends.

    Args:
        work: called in the child processes.
        jobs: by a name for the user, in order.
        devices: torch's names; a device listed twice runs two jobs in parallel.
        say: called with each message of a job, after the job's name.

    Raises:
        JobFailedError: a job failed, or its process was killed.
        StoppedOnRequest: this process or a job's process received a stop request.
    """
    waiting, free, running, done = dict(jobs), list(devices), list[_Running](), 0
    threads = max(1, torch.get_num_threads() // len(devices))
    with StopRequest() as stop:
        try:
            while (waiting and stop.signal_name is None) or running:
                while waiting and free and stop.signal_name is None:
                    name = next(iter(waiting))
                    running.append(_start_job(work, name, waiting.pop(name), free.pop(0), threads))
                if stop.signal_name is not None:
                    _request_stop(running)
                for ended in _collect_ended(running, say):
                    running.remove(ended)
                    free.append(ended.device)
                    done += _is_done(ended, stop)
        finally:
            _end_all(running)
        if done < len(jobs):
            stop.raise_if_requested(f"with {done} of {len(jobs)} done; continue with --resume")


def _start_job(work: Work, name: str, job: Any, device: str, threads: int) -> _Running:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_run_job, args=(work, job, device, threads, sender), name=name)
    process.start()
    sender.close()  # so that the pipe ends when the process ends
    return _Running(name, device, process, receiver)


def _collect_ended(running: Sequence[_Running], say: Callable[[str], None]) -> list[_Running]:
    """Forward the jobs' messages; return the processes that have ended."""
    ended = []
    ready = wait([each.connection for each in running], timeout=_POLL_SECONDS)
    for each in [each for each in running if each.connection in ready]:
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
    """Return whether a job is done, or raise its error.

    A job that was stopped on request is not done and raises no error.
    """
    outcome = ended.outcome
    if outcome is not None and outcome.exit_code == 0:
        return True
    if stop.signal_name is not None:
        return False
    if outcome is None:
        code = ended.process.exitcode or 0
        cause = f"by {signal.Signals(-code).name}" if code < 0 else f"with the exit code {code}"
        outcome = _Outcome(
            f"its process on {ended.device} ended {cause}, often for lack of memory. Fix: continue with --resume.",
            EXIT_FAILED,
        )
    message = f"{ended.name}: {outcome.message}"
    if outcome.exit_code == EXIT_STOPPED_RESUMABLE:
        raise StoppedOnRequest(message)
    error = JobFailedError(message, exit_code=outcome.exit_code)
    error.add_note(outcome.notes)
    raise error


def _request_stop(running: Sequence[_Running]) -> None:
    for each in running:
        if each.outcome is None and not each.got_stop_request:
            each.got_stop_request = True
            each.process.terminate()


def _end_all(running: list[_Running]) -> None:
    """Stop all remaining processes."""
    _request_stop(running)
    until = monotonic() + SECONDS_TO_END
    while running and monotonic() < until:
        for ended in _collect_ended(running, lambda sentence: None):
            running.remove(ended)
    for left in running:
        left.process.kill()
        left.process.join()


def _run_job(work: Work, job: Any, device: str, threads: int, connection: Connection) -> None:
    """Do one job in a child process; send its error as text."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the parent process passes it on
    threading.Thread(target=_stop_after_parent, daemon=True).start()
    torch.set_num_threads(threads)

    def say(message: str | _Outcome) -> None:
        with suppress(BrokenPipeError):  # the parent process has ended, and this process gets a stop request
            connection.send(message)

    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    outcome = _Outcome()
    try:
        work(job, device=device, say=say)
    except UumambaError as error:
        outcome = _Outcome(str(error), error.exit_code, traceback.format_exc())
    except Exception as error:  # noqa: BLE001 sent to the parent process, which raises it
        outcome = _Outcome(f"{type(error).__name__}: {error}", EXIT_FAILED, traceback.format_exc())
    say(outcome)


def _stop_after_parent() -> None:
    """Request a stop of this process when the parent process ends."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
