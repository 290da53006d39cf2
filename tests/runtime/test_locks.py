"""Tests of the folder lock."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from uumamba.runtime.files import lock_folder

HOLD = """
import fcntl, sys
with open(sys.argv[1], "a+") as stream:
    fcntl.lockf(stream, fcntl.LOCK_EX)
    stream.truncate(0)
    print("process 4711", file=stream, flush=True)
    print("held", flush=True)
    sys.stdin.read()
"""
TRY = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path: Path, refused: Any) -> None:
    path = tmp_path / ".lock"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with refused(str(tmp_path), got="a lock of process 4711"), lock_folder(tmp_path, doing="training"):
            pass
        other.kill()
    attempt = [sys.executable, "-c", TRY, str(path)]
    with lock_folder(tmp_path, doing="training"):
        assert subprocess.run(attempt, capture_output=True).returncode != 0
        assert path.read_text(encoding="utf-8").startswith("process ")
    assert subprocess.run(attempt, capture_output=True).returncode == 0
