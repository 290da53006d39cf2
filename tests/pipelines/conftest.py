"""Tiny phantom, prepared and trained once for all tests."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.run_files import MakeConfig, StateOf, last_of
from uumamba.config import RunConfig, read_config

TINY = (
    "preprocess.spacing_mm=[null,3.0,3.0]",
    "net.features=[4,8,8]",
    "net.strides=[[1,1],[2,2],[2,2]]",
    "net.encoder_blocks=[1,1,1]",
    "net.decoder_blocks=[1,1]",
    "training.epochs=2",
    "training.batches_per_epoch=3",
    "training.batch_size=2",
    "training.patch_size=[48,48]",
    "training.validate_every=1",
    "training.precision=float32",
    "inference.precision=float32",
)


@pytest.fixture(scope="session")
def tiny_overrides() -> tuple[str, ...]:
    """Overrides that reduce the demo's run to seconds, as ``--set`` takes them."""
    return TINY


@pytest.fixture(scope="session")
def tiny_config() -> MakeConfig:
    """``tiny_config("training.ema_decay=0.9", ...)``: the demo's run reduced to seconds."""

    def read(*overrides: str) -> RunConfig:
        return read_config("demo", (*TINY, *overrides))

    return read


@pytest.fixture(scope="session")
def tiny_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom of five training patients, one per fold, and a test patient."""
    from data_prep.phantoms.heart.heart_phantom import write_phantom

    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, patients=5, test_patients=1, seed=0, workers=0)
    return folder


@pytest.fixture(scope="session")
def tiny_prepared(tiny_raw: Path, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared cases of the phantom."""
    from uumamba.pipelines.datasets import read_dataset
    from uumamba.pipelines.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared")
    manifest, bad = read_dataset("phantom", tiny_raw)
    result = prepare(manifest, bad, recipe=tiny_config().preprocess.build(), out=folder, workers=0)
    assert not result.failures
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_prepared: Path, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fold 0, trained for two short epochs."""
    from uumamba.pipelines.train import train

    folder = tmp_path_factory.mktemp("run")
    train(tiny_config(), data=tiny_prepared, out=folder)
    return folder


class ForkedCli:
    """``uumamba`` in child processes without start-up time."""

    def __init__(self) -> None:
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "MALLOC_MMAP_THRESHOLD_": "1000000",  # freed tensors return their memory to the system
        }
        command = [sys.executable, str(Path(__file__).with_name("forked_cli.py"))]
        self._server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment
        )

    def start(self, *arguments: str, stderr: Path, **code: str) -> int:
        """Start a verb; return its process id.

        ``before`` and ``after`` are Python code to run in the process around the verb.
        """
        return self._request(arguments=arguments, stderr=str(stderr), **code)

    def wait(self, pid: int, *, seconds: float = 120) -> int | None:
        """Return the exit code, negative for a signal; None if still running."""
        return self._request(wait=pid, seconds=seconds)

    def run(self, *arguments: str, stderr: Path, **code: str) -> int | None:
        """Return the exit code."""
        return self.wait(self.start(*arguments, stderr=stderr, **code))

    def close(self) -> None:
        """End the process that forks the verbs."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()

    def _request(self, **request: Any) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(request), file=self._server.stdin, flush=True)
        return json.loads(self._server.stdout.readline())


@pytest.fixture(scope="session")
def state_of() -> StateOf:
    """``state_of(run)``: fold 0's last checkpoint as comparable values.

    Clock and configuration are left out.
    """
    from tests.training.tiny_run import CLOCK_READINGS
    from uumamba.runtime.tree import flatten

    def read(run: Path) -> dict[str, Any]:
        state = vars(last_of(run))
        for name in CLOCK_READINGS:
            del state["progress"][name]
        del state["config"]
        tensors, rest = flatten(state)
        return {"rest": rest} | {name: tensor.contiguous().numpy().tobytes() for name, tensor in tensors.items()}

    return read


@pytest.fixture(scope="session")
def forked_cli() -> Iterator[ForkedCli]:
    """``forked_cli.start("train", ..., stderr=PATH)``, ``.wait(pid)`` and ``.run(...)``."""
    server = ForkedCli()
    yield server
    server.close()
