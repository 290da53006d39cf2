"""``uumamba train --fold cv --device cpu,cpu``: the weights of folds in turn, stopped and resumed, and averaged."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from uumamba.config import RunConfig
from uumamba.pipelines import load_predictor
from uumamba.pipelines.train import refuse_another_run, train
from uumamba.runtime.errors import EXIT_STOPPED_RESUMABLE, UsageError
from uumamba.training import RunLog, read_checkpoint

MakeConfig = Callable[..., RunConfig]
OPTIONS = ("--seeds", "0,1", "--device", "cpu,cpu", "--resume")


def start(prepared: Path, out: Path, overrides: Sequence[str], *options: str) -> subprocess.Popen[str]:
    settings = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "uumamba.cli", "train", "demo", "--data", str(prepared), "--out", str(out)]
    return subprocess.Popen(
        [*command, *settings, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "2"},  # so each of two trainings has one
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums that are split among threads round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def epochs_in(run: Path) -> list[int]:
    return [len(RunLog(path).rows()) for path in sorted(run.glob("seed_*/fold_*/metrics.jsonl"))]


def test_more_devices_than_trainings_are_refused(tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There are 2 devices for 1 trainings, and each is done on one; give fewer"):
        train(tiny_config(), data=tiny_prepared, out=tmp_path / "run", device="cpu,cpu")
    assert not (tmp_path / "run").exists()


def test_two_seeds_are_two_runs_that_are_resumed_and_averaged(
    tiny_prepared: Path, tiny_run: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    options = {"data": tiny_prepared, "out": tmp_path, "seeds": (0, 1), "resume": True}
    folders = train(tiny_config(), **options)
    assert [folder.relative_to(tmp_path).as_posix() for folder in folders] == ["seed_0/fold_0", "seed_1/fold_0"]
    weights = [read_checkpoint(folder / "last.safetensors") for folder in (*folders, tiny_run / "fold_0")]
    assert [stored.config["run"]["seed"] for stored in weights] == [0, 1, 0]
    assert all(torch.equal(weights[0].net[name], value) for name, value in weights[2].net.items()), "seed 0 is seed 0"
    assert not all(torch.equal(weights[1].net[name], value) for name, value in weights[2].net.items())
    assert len(load_predictor(tmp_path).nets) == 2
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [each["seed"] for each in summary["trainings"]] == [0, 1]
    before = {path: path.read_bytes() for path in tmp_path.glob("seed_*/fold_0/[lm]*")}
    assert train(tiny_config(), **options) == folders
    assert {path: path.read_bytes() for path in before} == before, "what is finished is left alone"
    refuse_another_run(tiny_config(), tmp_path)
    with pytest.raises(UsageError, match=r"optim\.rho: 0\.05 there, 0\.1 here"):
        refuse_another_run(tiny_config("optim.rho=0.1"), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_trainings_side_by_side_are_stopped_resumed_and_equal_those_in_turn(
    tiny_prepared: Path, tiny_config: MakeConfig, tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = (*tiny_overrides, "training.epochs=4")
    process = start(tiny_prepared, tmp_path / "beside", overrides, *OPTIONS)
    while sum(epochs_in(tmp_path / "beside")) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_STOPPED_RESUMABLE, told
    assert "Stopped by SIGTERM with" in told
    process = start(tiny_prepared, tmp_path / "beside", overrides, *OPTIONS)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert "seed 1, fold 0: epoch 4/4" in told
    assert "Validation Dice of 2 trainings" in told
    train(tiny_config("training.epochs=4"), data=tiny_prepared, out=tmp_path / "turn", seeds=(0, 1))
    for name in ("seed_0", "seed_1"):
        beside, turn = (
            read_checkpoint(tmp_path / place / name / "fold_0" / "last.safetensors").net for place in ("beside", "turn")
        )
        assert all(torch.equal(beside[key], value) for key, value in turn.items())


@pytest.mark.slow
def test_a_refusal_side_by_side_is_the_refusal_of_one(
    tiny_prepared: Path, tiny_config: MakeConfig, tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    train(tiny_config(), data=tiny_prepared, out=tmp_path, seeds=(0, 1))
    process = start(tiny_prepared, tmp_path, (*tiny_overrides, "optim.rho=0.1"), *OPTIONS)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "fold 0: config: got {'run.optim.rho': 0.1}" in told
    assert "Traceback" not in told
