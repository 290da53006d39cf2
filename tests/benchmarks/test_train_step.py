"""Tests of the training step benchmark, on a tiny network."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from benchmarks import train_step
from benchmarks.train_step import BARE, OURS, load_first_batch
from uumamba.config import RunConfig
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.build import build_trainer

Config = Callable[..., RunConfig]
build = partial(build_trainer, fold="0", run_dir=None, progress=False)


@pytest.mark.parametrize(("optim", "passes"), [("SAM", 2), ("Plain", 1)])
def test_passes_are_those_of_the_optimizer(
    phantom: PreparedFolder, tiny_config: Config, optim: str, passes: int
) -> None:
    trainer = build(tiny_config(f"optim={{name: {optim}, base: {{name: AdamW}}}}"), phantom)
    batch = load_first_batch(trainer)
    assert batch["image"].shape == (2, 1, 32, 32)
    assert train_step.count_step_passes(trainer, batch) == passes


def test_every_data_pipeline_has_a_row_and_trains_silently(
    phantom: PreparedFolder, tiny_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[Any] = []

    def record(*arguments: Any, **options: Any) -> Any:
        built.append(build_trainer(*arguments, **options))
        return built[-1]

    monkeypatch.setattr(train_step, "find_spec", lambda name: None)
    monkeypatch.setattr(train_step, "build_trainer", record)
    bare, ours, ahead = train_step.measure(tiny_config("training.epochs=100"), phantom, device="cpu", steps=2, rounds=2)
    assert (bare["name"], ours["name"], ahead["name"]) == (BARE, OURS, f"{OURS}, reads ahead")
    assert (bare["ratio"], bare["waited_s"]) == (1.0, None)
    assert ours["waited_s"] < ours["median_s"] * 2
    assert built[0].state.progress.steps_done == 6, "two rounds and a warm-up"
    assert capsys.readouterr().err == ""


def test_ratios_are_computed_in_each_round() -> None:
    seconds = {BARE: [1.0, 2.0, 4.0], OURS: [1.1, 2.0, 4.8]}
    _, row = train_step.make_rows(seconds, {OURS: 0.01}, passes=2)
    assert (row["ratio"], row["median_s"]) == (1.1, 2.0)


def test_nnunet_s_batches_have_the_form_of_ours(phantom: PreparedFolder, tiny_config: Config) -> None:
    if find_spec("nnunetv2") is None:
        return
    fed = train_step.feed_from_nnunet(build(tiny_config(), phantom), tiny_config(), phantom, workers=0)
    batch = load_first_batch(fed)
    assert (batch["image"].shape, batch["image"].dtype) == ((2, 1, 32, 32), torch.float32)
    assert batch["label"].dtype == torch.int64
