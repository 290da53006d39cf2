"""Tests of jobs on several devices, in real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from uumamba.runtime.errors import EXIT_FAILED, EXIT_STOPPED_RESUMABLE, EXIT_WRONG_USE

PROGRAM = Path(__file__).with_name("device_jobs.py")


def start(folder: Path, *jobs: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(PROGRAM), str(folder), *jobs]
    environment = os.environ | {"PYTHONPATH": str(PROGRAM.parents[2])}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, encoding="utf-8", env=environment)


def start_waiting(folder: Path, *jobs: str) -> subprocess.Popen[str]:
    """Start the jobs; return when ``wait-1`` and ``wait-2`` are waiting."""
    process = start(folder, "wait-1", "wait-2", *jobs)
    while not all((folder / f"wait-{number}.waits").exists() for number in (1, 2)):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.02)
    return process


def is_alive(began: Path) -> bool:
    try:
        os.kill(int(began.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("job", "code", "message"),
    [
        ("error", EXIT_WRONG_USE, "JobFailedError: error: --data: got nothing"),
        pytest.param("bug", EXIT_FAILED, "bug: ZeroDivisionError: a bug", marks=pytest.mark.slow),
        pytest.param("killed", EXIT_FAILED, "killed: its process", marks=pytest.mark.slow),
    ],
)
def test_the_first_failure_stops_the_others_with_its_message_and_exit_code(
    tmp_path: Path, job: str, code: int, message: str
) -> None:
    process = start(tmp_path, "wait", job, "later")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code
    assert "wait: on cpu with 1 threads" in said, "the two jobs share two threads"
    assert message in said.splitlines()[-1]
    assert (tmp_path / "wait.stopped").exists(), "the other job got a stop request and was not killed"
    assert not (tmp_path / "later.began").exists()
    assert not is_alive(tmp_path / "wait.began")


@pytest.mark.slow
def test_every_job_is_done_and_its_messages_have_its_name(tmp_path: Path) -> None:
    process = start(tmp_path, "a", "warn-1", "b")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    lines = [f"{name}: on cpu with 1 threads" for name in ("a", "b", "warn-1")]
    assert sorted(said.splitlines()) == [*lines, "warn-1: warning: something is odd"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "number", "message"),
    [
        ("all", signal.SIGTERM, "Stopped by SIGTERM with 0 of 3 done"),
        ("wait-2", signal.SIGUSR1, "wait-2: Stopped by SIGUSR1 with a checkpoint."),
    ],
)
def test_a_stop_request_to_the_parent_process_or_to_one_job_stops_all(
    tmp_path: Path, target: str, number: signal.Signals, message: str
) -> None:
    process = start_waiting(tmp_path, "later")
    os.kill(process.pid if target == "all" else int((tmp_path / f"{target}.began").read_text()), number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED_RESUMABLE
    assert f"StoppedOnRequest: {message}" in said
    assert all((tmp_path / f"{name}.stopped").exists() for name in ("wait-1", "wait-2"))
    assert not (tmp_path / "later.began").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_job_outlives_the_parent_process(tmp_path: Path, number: signal.Signals) -> None:
    process = start_waiting(tmp_path)
    process.send_signal(number)
    process.communicate(timeout=60)
    until = time.monotonic() + 30
    while any(is_alive(tmp_path / f"{name}.began") for name in ("wait-1", "wait-2")):
        assert time.monotonic() < until, "a job's process has not ended"
        time.sleep(0.05)
    assert all((tmp_path / f"{name}.stopped").exists() for name in ("wait-1", "wait-2")), "both jobs saved their state"
