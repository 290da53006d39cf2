"""A real process, killed without warning, is resumed to the very bits of a run that was never killed."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Bits = Callable[[Path], dict[str, Any]]


def start(tiny_run: Path, repository: Path, folder: Path, moment: str = "never") -> subprocess.Popen[str]:
    command = [sys.executable, str(tiny_run), str(folder), moment]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", env=environment)


def kill_at(process: subprocess.Popen[str], line: str, count: int, wait_s: float = 0.0) -> int:
    """SIGKILL when the process has printed ``line`` so many times, and a moment later; how often is still missing."""
    assert process.stdout is not None
    for found in process.stdout:
        count -= found.strip() == line
        if count == 0:
            break
    time.sleep(wait_s)
    process.kill()
    process.communicate()
    return count


def finish(process: subprocess.Popen[str]) -> None:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert out.endswith("done\n")


def assert_well_formed(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["epoch"] for row in rows] == list(range(len(rows)))


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bits(
    tiny_run: Path, repository: Path, bits: Bits, tmp_path: Path
) -> None:
    whole = start(tiny_run, repository, tmp_path / "whole")
    folder = tmp_path / "killed"
    assert kill_at(start(tiny_run, repository, folder), "step", 8, wait_s=0.003) == 0
    assert kill_at(start(tiny_run, repository, folder, "half written"), "hangs", 1) == 0
    assert list(folder.glob(".unfinished-*")), "the kill fell into the writing"
    assert kill_at(start(tiny_run, repository, folder, "row is written"), "hangs", 1) == 0
    assert kill_at(start(tiny_run, repository, folder, "last is previous"), "hangs", 1) == 0
    assert not (folder / "last.safetensors").exists(), "the kill fell between the two moves"
    assert_well_formed(folder)
    finish(start(tiny_run, repository, folder))
    finish(whole)
    for name in ("last", "best"):
        assert bits(folder / f"{name}.safetensors") == bits(tmp_path / "whole" / f"{name}.safetensors")
    assert not list(folder.glob(".unfinished-*"))
    assert_well_formed(folder)


@pytest.mark.slow
def test_killed_at_many_random_moments_it_ends_with_the_same_bits(
    tiny_run: Path, repository: Path, bits: Bits, tmp_path: Path
) -> None:
    finish(start(tiny_run, repository, tmp_path / "whole"))
    draw = random.Random(0)
    for trial in range(5):
        folder = tmp_path / f"killed_{trial}"
        for _ in range(3):
            # A run that ends before it is killed was resumed to its end.
            kill_at(start(tiny_run, repository, folder), "step", draw.randint(1, 7), wait_s=draw.random() * 0.05)
        finish(start(tiny_run, repository, folder))
        for name in ("last", "best"):
            assert bits(folder / f"{name}.safetensors") == bits(tmp_path / "whole" / f"{name}.safetensors")
        assert_well_formed(folder)
