"""Program with jobs on devices: ``python device_jobs.py FOLDER JOB...``.

Two jobs run in parallel. A job ``wait`` runs until it gets a stop request and then leaves its name in the folder, as a
training leaves a checkpoint; ``error``, ``bug`` and ``killed`` fail in the named way once another job is waiting.
"""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from uumamba.runtime.device_jobs import run_on_devices
from uumamba.runtime.errors import UsageError, UumambaError
from uumamba.runtime.stop import StopRequest


def work(job: str, *, folder: Path, device: str, say: Callable[[str], None]) -> None:
    kind = job.partition("-")[0]
    (folder / f"{job}.began").write_text(f"{os.getpid()}")
    say(f"on {device} with {torch.get_num_threads()} threads")
    if kind == "warn":
        warnings.warn("something is odd", stacklevel=1)
    if kind == "wait":
        with StopRequest() as stop:
            (folder / f"{job}.waits").touch()
            while stop.signal_name is None:
                time.sleep(0.01)
            (folder / f"{job}.stopped").touch()
            stop.raise_if_requested("with a checkpoint")
    if kind in ("error", "bug", "killed"):
        while not list(folder.glob("*.waits")):
            time.sleep(0.01)
        if kind == "error":
            raise UsageError("--data", got="nothing", expected="a folder")
        if kind == "bug":
            raise ZeroDivisionError("a bug")
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    torch.set_num_threads(2)
    folder, *names = sys.argv[1:]
    try:
        run_on_devices(partial(work, folder=Path(folder)), {name: name for name in names}, ["cpu", "cpu"], say=print)
    except UumambaError as error:
        print(f"{type(error).__name__}: {error}")
        sys.exit(error.exit_code)
