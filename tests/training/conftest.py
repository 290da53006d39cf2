"""A tiny run to stop, kill and resume, and what must be equal afterwards."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from uumamba.runtime.tree import flatten
from uumamba.training import Trainer, read_checkpoint
from uumamba.training.progress import CLOCK_READINGS

TINY_RUN = Path(__file__).with_name("tiny_run.py")


@pytest.fixture(scope="session")
def tiny_run() -> Path:
    """The script of the tiny run."""
    return TINY_RUN


@pytest.fixture(scope="session")
def build_trainer() -> Callable[..., Trainer]:
    """``build_trainer(run_dir, **options)``: the tiny run, built anew with fixed seeds."""
    build: Callable[..., Trainer] = runpy.run_path(str(TINY_RUN))["build_trainer"]
    return build


@pytest.fixture(scope="session")
def bits() -> Callable[[Path], dict[str, Any]]:
    """Everything in a checkpoint but times, comparable by ``==``: tensors as bytes."""

    def read(path: Path) -> dict[str, Any]:
        checkpoint = vars(read_checkpoint(path))
        for name in CLOCK_READINGS:
            checkpoint["progress"].pop(name)
        tensors, rest = flatten(checkpoint)
        return {"rest": rest} | {
            name: (tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
            for name, tensor in tensors.items()
        }

    return read


@pytest.fixture(scope="session")
def unstopped(build_trainer: Callable[..., Trainer], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run's folder, never stopped."""
    folder = tmp_path_factory.mktemp("unstopped")
    build_trainer(folder).fit()
    return folder
