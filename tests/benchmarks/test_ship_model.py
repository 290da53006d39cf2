"""Tests of models that are stored in the package."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import ship_model
from tests.benchmarks.test_acdc_search import make_row
from uumamba.data.prepared import PreparedFolder
from uumamba.evaluation.scores import write_scores
from uumamba.pipelines import load_predictor
from uumamba.pipelines.train import train
from uumamba.training import read_checkpoint


@pytest.fixture(scope="module")
def runs(phantom: PreparedFolder, tiny_config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train fold 0 and all cases for two epochs."""
    out = tmp_path_factory.mktemp("runs")
    config = tiny_config("training.epochs=2", "optim={name: Plain, base: {name: AdamW}}")
    for fold in ("0", "all"):
        train(config, data=phantom.path, out=out / fold, fold=fold, progress=False)
    rows = [make_row("a", phase, name, 0.9, 2.0, 50, 40) for name in ("RV", "MYO", "LV") for phase in ("ED", "ES")]
    write_scores(out / "scores.csv", rows)
    return out


def make_command(runs: Path, models: Path, scored: str = "0") -> list[str]:
    paths = ["--run", str(runs / "all"), "--scored-run", str(runs / scored), "--scores", str(runs / "scores.csv")]
    return ["--name", "toy", *paths, "--models", str(models)]


def test_a_shipped_model_predicts_as_its_run_up_to_half_precision(runs: Path, tmp_path: Path) -> None:
    assert ship_model.main(make_command(runs, tmp_path)) == 0
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {"model.safetensors", "CARD.md", "LICENSE"}
    weights = read_checkpoint(tmp_path / "toy" / "model.safetensors").net
    assert {each.dtype for each in weights.values() if each.is_floating_point()} == {torch.float16}
    image = np.random.default_rng(0).normal(size=(40, 40, 3))
    found = [
        load_predictor(model)(image, spacing_mm=(1.5, 1.5, 10.0), probabilities=True).probabilities
        for model in (runs / "all", tmp_path / "toy" / "model.safetensors")
    ]
    assert np.abs(found[0] - found[1]).max() < 0.01
    card = (tmp_path / "toy" / "CARD.md").read_text()
    assert "| MYO | 0.900 | 0.900 | 0.900 | 2.0 | 2.0 | 2.0 |" in card
    assert "inherited from the data" in card


def test_figures_of_another_configuration_are_refused(
    runs: Path, phantom: PreparedFolder, tiny_config: Any, tmp_path: Path, refused: Any
) -> None:
    config = tiny_config("training.epochs=2", "optim={name: Plain, base: {name: AdamW, lr: 0.5}}")
    train(config, data=phantom.path, out=runs / "other", fold="0", progress=False)
    with refused("--scored-run", got="other optim"):
        ship_model.main(make_command(runs, tmp_path, scored="other"))
