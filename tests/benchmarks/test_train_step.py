"""The training step benchmark measures the trainer's own step, on a small set-up."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from benchmarks import train_step
from benchmarks.train_step import BARE, OURS, broken_claims, fixed_batch, measure, passes_of, rows_of
from uumamba.config import RunConfig, read_config
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.build import build_trainer

TINY = (
    "net.features=[4,8]",
    "net.strides=[[1,1],[2,2]]",
    "net.encoder_blocks=[1,1]",
    "net.decoder_blocks=[1]",
    "training.epochs=100",
    "training.batches_per_epoch=2",
    "training.batch_size=2",
    "training.patch_size=[32,32]",
    "training.precision=float32",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedFolder:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_step, "PATIENTS", 5)
        return train_step.prepare_phantom(tmp_path_factory.mktemp("step"), read_config("acdc_cpu"))


def config(*overrides: str) -> RunConfig:
    return read_config("acdc_cpu", (*TINY, *overrides))


@pytest.mark.parametrize(("optim", "passes"), [("SAM", 2), ("Plain", 1)])
def test_passes_are_those_that_the_optimizer_makes(prepared: PreparedFolder, optim: str, passes: int) -> None:
    chosen = f"optim={{name: {optim}, base: {{name: AdamW}}}}"
    trainer = build_trainer(config(chosen), prepared, fold="0", run_dir=None, progress=False)
    batch = fixed_batch(trainer)
    assert batch["image"].shape == (2, 1, 32, 32)
    assert passes_of(trainer, batch) == passes


def test_every_way_has_a_row_and_the_steps_are_taken(
    prepared: PreparedFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train_step, "find_spec", lambda name: None)
    built: list[Any] = []
    build: Callable[..., Any] = train_step.build_trainer

    def keep(*arguments: Any, **options: Any) -> Any:
        built.append(build(*arguments, **options))
        return built[-1]

    monkeypatch.setattr(train_step, "build_trainer", keep)
    rows = measure(config(), prepared, device="cpu", steps=2, rounds=2)
    assert [row["name"] for row in rows] == [BARE, OURS, f"{OURS}, reads ahead"]
    assert rows[0]["ratio"] == 1.0
    assert rows[0]["waited_s"] is None
    assert rows[1]["waited_s"] < rows[1]["median_s"] * 2
    assert built[0].state.progress.steps_done == 6, "two rounds and one to warm up"
    assert capsys.readouterr().err == ""


def test_ratios_are_taken_round_by_round() -> None:
    seconds = {BARE: [1.0, 2.0, 4.0], OURS: [1.1, 2.0, 4.8]}
    rows = list(rows_of(seconds, {OURS: 0.01}, passes=2))
    assert rows[1]["ratio"] == 1.1
    assert rows[1]["median_s"] == 2.0


@pytest.mark.parametrize(("ratio", "device", "broken"), [(1.1, "cpu", 0), (1.11, "cpu", 1), (1.05, "cuda:0", 1)])
def test_a_step_that_takes_too_long_is_said(ratio: float, device: str, broken: int) -> None:
    found = list(broken_claims([{"name": BARE, "ratio": 1.0}, {"name": OURS, "ratio": ratio}], device))
    assert len(found) == broken
    assert all(f"takes {ratio} times its bare passes, claimed at most" in sentence for sentence in found)


def test_the_peer_s_samples_are_ours_in_form(prepared: PreparedFolder) -> None:
    if find_spec("nnunetv2") is None:
        return
    trainer = build_trainer(config(), prepared, fold="0", run_dir=None, progress=False)
    fed = train_step.fed_by_nnunet(trainer, config(), prepared, workers=0)
    batch = fixed_batch(fed)
    assert batch["image"].shape == (2, 1, 32, 32)
    assert batch["image"].dtype == torch.float32
    assert batch["label"].dtype == torch.int64
