"""``uumamba train``, killed as a process of its own and resumed, ends with the bits of a run that was never killed."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uumamba.training.run_log import RunLog

pytestmark = pytest.mark.slow

KILLS = 20
OVERRIDES = (
    "training.epochs=6",
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

    begin = time.monotonic()
    assert forked_cli.wait(train(tmp_path / "whole", 0)) == 0
    seconds = time.monotonic() - begin
    draw, killed_in = random.Random(workers), []
    run = tmp_path / "killed"
    while len(killed_in) < KILLS:
        pid = train(run, workers, "--resume")
        time.sleep(seconds * draw.uniform(0.05, 0.5))
        os.kill(pid, signal.SIGKILL)
        if forked_cli.wait(pid) == -signal.SIGKILL:
            killed_in.append(len(RunLog(run / "fold_0" / "metrics.jsonl").rows()))
        else:
            compare(state_of, run, tmp_path / "whole")
            run = tmp_path / f"killed after {len(killed_in)}"  # it came to its end: the next kills are another run's
    assert forked_cli.wait(train(run, workers, "--resume")) == 0
    compare(state_of, run, tmp_path / "whole")
    assert len(set(killed_in)) > 2, "the kills fell into several epochs"


def compare(state_of: Callable[[Path], dict[str, Any]], killed: Path, whole: Path) -> None:
    one, other = state_of(killed), state_of(whole)
    assert one.keys() == other.keys()
    assert [key for key in one if one[key] != other[key]] == []
    rows = [RunLog(run / "fold_0" / "metrics.jsonl").rows() for run in (killed, whole)]
    assert [row | {"seconds": 0} for row in rows[0]] == [row | {"seconds": 0} for row in rows[1]]
