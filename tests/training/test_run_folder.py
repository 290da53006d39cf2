"""One process at a time in a run's folder, and nothing left of those that were killed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from uumamba.runtime.errors import UsageError
from uumamba.training.run_folder import RunFolder
from uumamba.training.run_log import RunLog

HOLD_LOCK = """
import fcntl, sys, time
with open(sys.argv[1], "a+") as stream:
    fcntl.lockf(stream, fcntl.LOCK_EX)
    stream.truncate(0)
    stream.write("process 4711")
    stream.flush()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path / ".lock")], stdout=subprocess.PIPE, encoding="utf-8"
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=r"Another process \(process 4711\) is training in"), folder.locked():
            pass
    finally:
        other.kill()
        other.communicate()
    with folder.locked():
        assert (tmp_path / ".lock").read_text(encoding="utf-8").startswith("process ")


def test_the_lock_keeps_a_second_process_out(tmp_path: Path) -> None:
    attempt = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", attempt, str(tmp_path / ".lock")]
    with RunFolder(tmp_path).locked():
        assert subprocess.run(command, capture_output=True).returncode != 0
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_what_a_killed_process_left_unfinished_is_cleared_away(tmp_path: Path) -> None:
    left_over = tmp_path / ".unfinished-1-ab-last.safetensors"
    left_over.write_text("half")
    with RunFolder(tmp_path).locked():
        assert not left_over.exists()


def test_a_folder_beneath_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be a folder because"):
        RunFolder(tmp_path / "file" / "run")


def test_a_disk_that_is_full_when_the_row_is_written_is_one_sentence(tmp_path: Path) -> None:
    """In a process of its own, none of whose files may grow at all."""
    code = (
        "import resource, sys; from uumamba.training import RunLog; resource.setrlimit(resource.RLIMIT_FSIZE, (4, 4));"
        "RunLog(sys.argv[1]).append({'epoch': 0, 'loss': 1.0})"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "log")], capture_output=True, encoding="utf-8")
    assert re.search(r"UumambaError: .*/log could not be written \(File too large\); make room or choose", done.stderr)
    assert RunLog(tmp_path / "log").rows() == [], "a torn row is none"
