"""Training of folds and seeds, in turn and in parallel: refusals, stop requests, resume."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from uumamba.config import RunConfig
from uumamba.pipelines import load_predictor
from uumamba.pipelines.build import WholeCaseValidation
from uumamba.pipelines.train import check_same_run, train
from uumamba.runtime.errors import EXIT_STOPPED_RESUMABLE, UsageError
from uumamba.runtime.stop import StoppedOnRequest
from uumamba.training import RunLog, read_checkpoint

MakeConfig = Callable[..., RunConfig]
Refused = Callable[..., Any]
OPTIONS = ("--seeds", "0,1", "--device", "cpu,cpu", "--resume")


@pytest.mark.parametrize(
    ("override", "options", "key", "got"),
    [
        ("preprocess.spacing_mm=[null,1.0,1.0]", {}, "preprocess", {"spacing_mm": (None, 1.0, 1.0)}),
        ("dataset.name=acdc", {}, "dataset.name", "acdc"),
        ("training.epochs=2", {"fold": "7"}, "--fold", "7"),
        ("training.epochs=2", {"device": "cpu,cpu"}, "--device", "cpu,cpu"),
    ],
)
def test_unfit_cases_folds_and_devices_are_refused_before_anything_is_made(
    override: str,
    options: dict[str, str],
    key: str,
    got: Any,
    tiny_prepared: Path,
    tiny_config: MakeConfig,
    tmp_path: Path,
    refused: Refused,
) -> None:
    with refused(key, got=got):
        train(tiny_config(override), data=tiny_prepared, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_stop_request_in_a_folds_last_validation_stops_before_the_next_fold(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = WholeCaseValidation.__call__

    def validate_and_stop(self: WholeCaseValidation, net: nn.Module) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return validate(self, net)

    monkeypatch.setattr(WholeCaseValidation, "__call__", validate_and_stop)
    with pytest.raises(StoppedOnRequest, match="SIGTERM before fold 1"):
        train(tiny_config("training.epochs=1"), data=tiny_prepared, out=tmp_path / "run", fold="cv")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["fold_0"]
    assert (tmp_path / "run" / "fold_0" / "last.safetensors").is_file()


def test_two_seeds_are_two_runs_that_are_resumed_and_averaged(
    tiny_prepared: Path, tiny_run: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data": tiny_prepared, "out": tmp_path, "seeds": (0, 1), "resume": True}
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
    assert {path: path.read_bytes() for path in before} == before, "finished folds stay as they are"
    check_same_run(tiny_config(), tmp_path)
    with pytest.raises(UsageError, match=r"optim\.rho"):
        check_same_run(tiny_config("optim.rho=0.1"), tmp_path)


# In parallel.


def start(prepared: Path, out: Path, overrides: Sequence[str]) -> subprocess.Popen[str]:
    settings = [argument for override in overrides for argument in ("--set", override)]
    command = [sys.executable, "-m", "uumamba", "train", "demo", "--data", str(prepared), "--out", str(out)]
    return subprocess.Popen(
        [*command, *settings, *OPTIONS],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "2"},  # so that each of two trainings has one
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread as in the parallel trainings: sums of several threads round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_parallel_trainings_are_stopped_resumed_refused_and_equal_those_in_turn(
    tiny_prepared: Path, tiny_config: MakeConfig, tiny_overrides: tuple[str, ...], tmp_path: Path
) -> None:
    parallel, overrides = tmp_path / "parallel", (*tiny_overrides, "training.epochs=4")
    process = start(tiny_prepared, parallel, overrides)
    logs = "seed_*/fold_*/metrics.jsonl"
    while sum(len(RunLog(path).rows()) for path in parallel.glob(logs)) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_STOPPED_RESUMABLE, said
    assert "Stopped by SIGTERM with" in said
    process = start(tiny_prepared, parallel, overrides)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "seed 1, fold 0: epoch 4/4" in said
    assert "Validation Dice of 2 trainings" in said
    train(tiny_config("training.epochs=4"), data=tiny_prepared, out=tmp_path / "turn", seeds=(0, 1))
    for name in ("seed_0", "seed_1"):
        one, other = (
            read_checkpoint(tmp_path / place / name / "fold_0" / "last.safetensors").net
            for place in ("parallel", "turn")
        )
        assert all(torch.equal(one[key], value) for key, value in other.items())
    process = start(tiny_prepared, parallel, (*overrides, "optim.rho=0.1"))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "optim.rho" in said
    assert "Traceback" not in said
