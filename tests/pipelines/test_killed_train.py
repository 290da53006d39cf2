"""``uumamba train``, killed as a process of its own and resumed, ends with the bits of a run that was never killed."""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from uumamba.training.run_log import RunLog

pytestmark = pytest.mark.slow

KILLS = 20
OVERRIDES = (
    "training.epochs=8",
    "training.batches_per_epoch=4",
    "training.ema_decay=0.9",
    "training.save_every_minutes=0",  # after each step, so that kills fall into saving, too
)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_twenty_random_moments_it_equals_a_run_that_was_never_killed(
    forked_cli: Any,
    tiny_prepared: Path,
    tiny_overrides: tuple[str, ...],
    state_of: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
    workers: int,
) -> None:
    def train(run: Path, workers: int, *options: str) -> int:
        keys = (*tiny_overrides, *OVERRIDES, f"training.workers={workers}")
        settings = [word for key in keys for word in ("--set", key)]
        given = ["train", "demo", "--device", "cpu", "--data", str(tiny_prepared), "--out", str(run), *settings]
        return forked_cli.start(*given, *options, stderr=tmp_path / "stderr")

    assert forked_cli.wait(train(tmp_path / "whole", 0)) == 0
    draw, killed_in, run = random.Random(workers), [], tmp_path / "killed"
    while len(killed_in) < KILLS:
        pid = train(run, workers, "--resume")
        wait_for_saves(run / "fold_0" / "last.safetensors", draw.randint(0, 3), lambda pid=pid: is_over(pid))
        time.sleep(draw.uniform(0.0, 0.1))
        os.kill(pid, signal.SIGKILL)  # a process that is over is still there for its parent to ask
        if forked_cli.wait(pid) == -signal.SIGKILL:
            killed_in.append(len(RunLog(run / "fold_0" / "metrics.jsonl").rows()))
        else:  # it came to its end, and the next kills are another run's
            compare(state_of, run, tmp_path / "whole")
            run = tmp_path / f"killed after {len(killed_in)}"
    assert forked_cli.wait(train(run, workers, "--resume")) == 0
    compare(state_of, run, tmp_path / "whole")
    assert len(set(killed_in)) > 2, "the kills fell into several epochs"


def is_over(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def wait_for_saves(checkpoint: Path, count: int, is_over: Callable[[], bool]) -> None:
    """Until a file was replaced so many times."""
    seen, before = -1, None
    while seen < count and not is_over():
        now = before
        with suppress(FileNotFoundError):  # before the first, and between the two moves of each
            now = checkpoint.stat().st_ino
        seen, before = seen + (now != before or seen < 0), now
        time.sleep(0.001)


def compare(state_of: Callable[[Path], dict[str, Any]], killed: Path, whole: Path) -> None:
    one, other = state_of(killed), state_of(whole)
    assert one.keys() == other.keys()
    assert [key for key in one if one[key] != other[key]] == []
    rows = [RunLog(run / "fold_0" / "metrics.jsonl").rows() for run in (killed, whole)]
    clock = {"seconds": 0, "data_wait": 0}
    assert [row | clock for row in rows[0]] == [row | clock for row in rows[1]]
