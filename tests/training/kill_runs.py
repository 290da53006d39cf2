"""Script of test_kill.py that kills real processes of the tiny run.

The run ``whole`` is never killed. The run ``chosen`` is killed at chosen moments and ``random_0`` to ``random_4`` at
random ones; each is resumed to its end. The processes are forked, so that torch is imported once.
"""

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.training.tiny_run import Batch, build_trainer, noisy
from uumamba.training import RunLog, checkpoint, trainer
from uumamba.training.run_folder import RunFolder


def print_step(batch: Batch) -> Batch:
    print("step", flush=True)
    return noisy(batch)


def hang() -> None:
    print("hangs", flush=True)
    time.sleep(60)


def hang_half_written(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a checkpoint, keep half of the file and hang."""
    SAVE_FILE(tensors, path, metadata=metadata)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)
    hang()


def hang_after(function: Callable[..., None]) -> Callable[..., None]:
    def and_hang(*arguments: Any) -> None:
        function(*arguments)
        hang()

    return and_hang


SAVE_FILE = checkpoint.save_file
MOMENTS: dict[str, Callable[[], None]] = {
    "never": lambda: None,
    "half written": lambda: setattr(checkpoint, "save_file", hang_half_written),
    "row is written": lambda: setattr(RunLog, "append", hang_after(RunLog.append)),
    "last is previous": lambda: setattr(RunFolder, "_keep_previous", hang_after(RunFolder._keep_previous)),
}


def train(folder: Path, moment: str = "never", *, line: str = "", count: int = -1, wait_s: float = 0.0) -> int:
    """Train in a forked process, killed after ``count`` lines ``line``.

    Returns:
        The exit code, -9 if killed.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writer, 1)
        try:
            MOMENTS[moment]()
            build_trainer(folder, augment=print_step).fit(resume=True)
            os._exit(0)
        except BaseException:  # noqa: BLE001 the test reads it
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as lines:
        for found in lines:
            count -= found.strip() == line
            if count == 0:
                time.sleep(wait_s)
                os.kill(pid, signal.SIGKILL)
                break
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    trainer.draw_progress = lambda rows, path: None
    build_trainer(folder / "whole").fit()  # here, so that what torch imports late is imported once for all
    chosen = folder / "chosen"
    assert train(chosen, line="step", count=8, wait_s=0.003) == -9
    assert train(chosen, "half written", line="hangs", count=1) == -9
    assert list(chosen.glob(".unfinished-*")), "the kill fell into the writing"
    assert train(chosen, "row is written", line="hangs", count=1) == -9
    assert train(chosen, "last is previous", line="hangs", count=1) == -9
    assert not (chosen / "last.safetensors").exists(), "the kill fell between the two moves"
    assert train(chosen) == 0
    draw = random.Random(0)
    for trial in range(5):
        for _ in range(3):
            # A run that ends before it is killed was resumed to its end.
            wait_s = draw.random() * 0.05
            train(folder / f"random_{trial}", line="step", count=draw.randint(1, 7), wait_s=wait_s)
        assert train(folder / f"random_{trial}") == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
