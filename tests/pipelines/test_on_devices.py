"""Jobs on several devices, in real processes: errors, kills and requests to stop reach all of them."""

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
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8")


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        time.sleep(0.02)


def is_alive(began: Path) -> bool:
    try:
        os.kill(int(began.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


def test_the_first_error_ends_the_rest_with_its_message_and_exit_code(tmp_path: Path) -> None:
    process = start(tmp_path, "wait-1", "error-1", "later-1")
    told, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_WRONG_USE
    assert "wait-1: on cpu with 1 threads" in told, "the two threads are shared out"
    assert told.endswith("JobFailedError: error-1: The case is odd; mend it.\n")
    assert (tmp_path / "wait-1.stopped").exists(), "it was asked, not killed"
    assert not (tmp_path / "later-1.began").exists()
    assert not is_alive(tmp_path / "wait-1.began")


@pytest.mark.slow
def test_every_job_is_done_and_what_it_says_has_its_name(tmp_path: Path) -> None:
    process = start(tmp_path, "a", "warn-1", "b")
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert sorted(told.splitlines()) == [
        "a: on cpu with 1 threads",
        "b: on cpu with 1 threads",
        "warn-1: on cpu with 1 threads",
        "warn-1: warning: something is odd",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("bug", "JobFailedError: bug: ZeroDivisionError: a bug\n"),
        ("killed", "killed: its process on cpu was ended by SIGKILL, often because memory ran out"),
    ],
)
def test_a_bug_and_a_kill_are_failures_too(tmp_path: Path, job: str, message: str) -> None:
    process = start(tmp_path, "wait", job)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_FAILED
    assert message in told
    assert (tmp_path / "wait.stopped").exists()


@pytest.mark.slow
def test_a_request_to_stop_reaches_all_and_can_be_resumed(tmp_path: Path) -> None:
    process = start(tmp_path, "wait-1", "wait-2", "later")
    for name in ("wait-1", "wait-2"):
        wait_for(tmp_path / f"{name}.waits", process)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED_RESUMABLE
    assert told.endswith("StoppedOnRequest: Stopped by SIGTERM with 0 of 3 done; go on with --resume.\n")
    assert all((tmp_path / f"{name}.stopped").exists() for name in ("wait-1", "wait-2"))
    assert not (tmp_path / "later.began").exists()


@pytest.mark.slow
def test_a_request_to_one_process_stops_all(tmp_path: Path) -> None:
    process = start(tmp_path, "wait-1", "wait-2")
    for name in ("wait-1", "wait-2"):
        wait_for(tmp_path / f"{name}.waits", process)
    os.kill(int((tmp_path / "wait-2.began").read_text()), signal.SIGUSR1)
    told, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_STOPPED_RESUMABLE
    assert "StoppedOnRequest: wait-2: Stopped by SIGUSR1 with a checkpoint." in told
    assert (tmp_path / "wait-1.stopped").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_process_outlives_the_first_one(tmp_path: Path, number: signal.Signals) -> None:
    process = start(tmp_path, "wait-1", "wait-2")
    for name in ("wait-1", "wait-2"):
        wait_for(tmp_path / f"{name}.waits", process)
    process.send_signal(number)
    process.communicate(timeout=60)
    until = time.monotonic() + 30
    while any(is_alive(tmp_path / f"{name}.began") for name in ("wait-1", "wait-2")):
        assert time.monotonic() < until, "they are left behind"
        time.sleep(0.05)
    assert all((tmp_path / f"{name}.stopped").exists() for name in ("wait-1", "wait-2")), "and they could save"
