"""Training of folds and seeds: refusals, stop requests, resume, parallel devices."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.pipelines.run_files import LAST, MakeConfig, Refused, last_of, read_json, train_arguments
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines import load_predictor
from uumamba.pipelines import train as pipelines_train
from uumamba.pipelines.build import WholeCaseValidation
from uumamba.pipelines.jobs import check_same_run
from uumamba.pipelines.train import train
from uumamba.runtime.errors import EXIT_STOPPED_RESUMABLE, CaseError, UsageError
from uumamba.runtime.stop import StoppedOnRequest
from uumamba.training import RunLog, Trainer, read_checkpoint
from uumamba.training.track_tensorboard import TensorBoardTracker

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


@pytest.mark.parametrize("resume", [False, True])
def test_a_changed_label_is_refused_by_name_before_anything_is_made(
    resume: bool, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    prepared = Path(shutil.copytree(tiny_prepared, tmp_path / "prepared"))
    changed = sorted(prepared.glob("cases/*/label.npy"))[3]
    label = np.load(changed)
    label[0, 0, 0] = 77
    np.save(changed, label)
    with pytest.raises(CaseError, match=rf"{changed}: got other bytes .*Fix: run `uumamba prepare` again"):
        train(tiny_config(), data=prepared, out=tmp_path / "run", resume=resume)
    assert not (tmp_path / "run").exists()


def test_verifying_is_announced_and_a_stop_request_ends_it_before_anything_is_made(
    tiny_prepared: Path,
    tiny_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    verify = PreparedFolder.verify

    def verify_and_stop(self: PreparedFolder, case_ids: Sequence[str]) -> None:
        verify(self, case_ids)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(PreparedFolder, "verify", verify_and_stop)
    with pytest.raises(StoppedOnRequest, match="SIGTERM after verifying 8 of 10 cases; run the same command"):
        train(tiny_config(), data=tiny_prepared, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err == "train: verifying the arrays of 10 cases\n"


def test_a_stop_request_in_the_last_validation_of_a_fold_stops_before_the_next_fold(
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
    assert (tmp_path / "run" / LAST).is_file()


def test_two_seeds_are_two_runs_that_are_resumed_and_averaged(
    tiny_prepared: Path, tiny_run: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"data": tiny_prepared, "out": tmp_path, "seeds": (0, 1), "resume": True}
    folders = train(tiny_config(), **options)
    assert [folder.relative_to(tmp_path).as_posix() for folder in folders] == ["seed_0/fold_0", "seed_1/fold_0"]
    weights = [read_checkpoint(folder / "last.safetensors") for folder in (*folders, tiny_run / "fold_0")]
    assert [stored.config["run"]["seed"] for stored in weights] == [0, 1, 0]
    assert all(torch.equal(weights[0].net[name], value) for name, value in weights[2].net.items()), (
        "seed 0 is the default"
    )
    assert not all(torch.equal(weights[1].net[name], value) for name, value in weights[2].net.items())
    assert len(load_predictor(tmp_path).nets) == 2
    assert [each["seed"] for each in read_json(tmp_path / "summary.json")["trainings"]] == [0, 1]
    before = {path: path.read_bytes() for path in tmp_path.glob("seed_*/fold_0/[lm]*")}
    assert train(tiny_config(), **options) == folders
    assert {path: path.read_bytes() for path in before} == before, "finished folds are not changed"
    check_same_run(tiny_config(), tmp_path)
    with pytest.raises(UsageError, match=r"optim\.rho"):
        check_same_run(tiny_config("optim.rho=0.1"), tmp_path)


@pytest.mark.slow
def test_the_prediction_of_five_folds_is_the_mean_of_their_probabilities(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    folders = train(tiny_config("training.epochs=1"), data=tiny_prepared, out=tmp_path / "run", fold="cv")
    assert [folder.name for folder in folders] == [f"fold_{fold}" for fold in range(5)]
    image = np.random.default_rng(0).random((40, 44, 5), dtype=np.float32)
    together, *each = (
        load_predictor(model)(image, spacing_mm=(2.0, 2.0, 8.0), probabilities=True).probabilities
        for model in (tmp_path / "run", *folders)
    )
    np.testing.assert_allclose(together, np.mean(each, axis=0), atol=1e-5)


def test_fine_tuning_starts_from_the_average_of_the_given_weights(
    tiny_run: Path, tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    still = tiny_config("optim.base.lr=1e-30", "optim.base.weight_decay=0", "training.epochs=1")
    train(still, data=tiny_prepared, out=tmp_path, init=str(tiny_run))
    before, after = last_of(tiny_run), last_of(tmp_path).net
    assert before.ema is not None
    assert any(not torch.equal(before.ema[name], value) for name, value in before.net.items())
    for name, value in after.items():
        torch.testing.assert_close(value, before.ema[name])


# Parallel devices.


def start(prepared: Path, out: Path, overrides: tuple[str, ...]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "uumamba", *train_arguments(prepared, out, overrides, *OPTIONS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "2"},  # so that each of two trainings has one
    )


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, as in the parallel trainings.

    Sums of several threads round differently.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_parallel_trainings_stop_resume_and_equal_trainings_one_after_the_other(
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
    train(tiny_config("training.epochs=4"), data=tiny_prepared, out=tmp_path / "one by one", seeds=(0, 1))
    for seed in ("seed_0", "seed_1"):
        one, other = (last_of(tmp_path / run / seed).net for run in ("parallel", "one by one"))
        assert all(torch.equal(one[key], value) for key, value in other.items())
    process = start(tiny_prepared, parallel, (*overrides, "optim.rho=0.1"))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "optim.rho" in said
    assert "Traceback" not in said


def test_the_steps_before_fit_are_in_order(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def note(name: str) -> None:
        step = getattr(pipelines_train, name)

        def noted(*arguments: Any, **options: Any) -> Any:
            steps.append(name)
            return step(*arguments, **options)

        monkeypatch.setattr(pipelines_train, name, noted)

    expected = ["training_case_ids", "build_trainer", "calibrate_at_start"]
    for name in reversed(expected):
        note(name)
    monkeypatch.setattr(Trainer, "fit", lambda trainer, **options: steps.append("fit"))
    train(tiny_config(), data=tiny_prepared, out=tmp_path / "run")
    assert steps == [*expected, "fit"]


def test_a_tracker_that_cannot_be_built_is_reported_once_and_the_training_is_the_same(
    tiny_prepared: Path,
    tiny_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ImportError("a broken package")

    monkeypatch.setattr(TensorBoardTracker, "__init__", fail)
    train(tiny_config("track=[tensorboard]"), data=tiny_prepared, out=tmp_path / "tracked")
    report = "tensorboard failed (ImportError: a broken package) and is left out; training continues."
    assert capsys.readouterr().err.count(report) == 1
    train(tiny_config(), data=tiny_prepared, out=tmp_path / "plain")
    one, other = (last_of(tmp_path / run).net for run in ("tracked", "plain"))
    assert all(torch.equal(one[key], value) for key, value in other.items())
