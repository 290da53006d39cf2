"""``uumamba train``, killed as a process of its own and resumed, ends with the bits of a run that was never killed."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from uumamba.training.checkpoint import read_checkpoint
from uumamba.training.run_log import RunLog

pytestmark = pytest.mark.slow


def train(prepared: Path, out: Path, overrides: Sequence[str], *options: str) -> subprocess.Popen[bytes]:
    settings = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "uumamba.cli", "train", "demo", "--data", str(prepared), "--out", str(out)]
    return subprocess.Popen([*command, *settings, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_killed_and_resumed_run_equals_one_that_was_never_killed(
    tiny_prepared: Path, tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = (*tiny_overrides, "training.epochs=6", "training.ema_decay=0.9")
    assert train(tiny_prepared, tmp_path / "whole", overrides).wait() == 0
    log = RunLog(tmp_path / "killed" / "fold_0" / "metrics.jsonl")
    moments = random.Random(0)
    for epochs in (1, 2, 4):
        process = train(tiny_prepared, tmp_path / "killed", overrides, "--resume")
        while len(log.rows()) < epochs and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0.0, 0.1))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert epochs <= len(log.rows()) < 6, "the kill fell into training"
    assert train(tiny_prepared, tmp_path / "killed", overrides, "--resume").wait() == 0
    whole, killed = (read_checkpoint(tmp_path / name / "fold_0" / "last.safetensors") for name in ("whole", "killed"))
    assert whole.net.keys() == killed.net.keys()
    assert all(torch.equal(killed.net[name], tensor) for name, tensor in whole.net.items())
    assert whole.ema is not None
    assert killed.ema is not None
    assert all(torch.equal(killed.ema[name], tensor) for name, tensor in whole.ema.items())
    assert all(torch.equal(killed.objective[name], tensor) for name, tensor in whole.objective.items())
