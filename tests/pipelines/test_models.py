"""Trained models: checkpoints, averages and configurations of older versions."""

import json
import resource
import shutil
import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.pipelines.run_files import LAST, MakeConfig, Refused, read_json
from uumamba.config import read_config
from uumamba.config.stored_config import complete_config
from uumamba.data.preprocess import CtStatistics, PreprocessRecipe
from uumamba.pipelines import load_predictor
from uumamba.pipelines.jobs import check_same_run
from uumamba.pipelines.models import checkpoint_paths
from uumamba.pipelines.train import train
from uumamba.runtime.errors import UsageError
from uumamba.training.checkpoint import Checkpoint, read_checkpoint, save_checkpoint

NEW_KEYS = (
    "augment.swap_sides",
    "training.sampling",
    "training.useful",
    "training.read_margin",
    "net.deep_supervision",
    "schedule",
    "dataset.domains",
    "quantization",
)
"""Keys with their default value in the tiny run."""


def change(path: Path, **parts: object) -> Checkpoint:
    changed = replace(read_checkpoint(path), **parts)  # type: ignore[arg-type]  # keywords of several types
    save_checkpoint(path, changed)
    return changed


@pytest.fixture
def fold(tiny_run: Path, tmp_path: Path) -> Path:
    """Copy of a fold folder."""
    return Path(shutil.copytree(tiny_run / "fold_0", tmp_path / "own" / "fold_0"))


def test_the_model_of_a_fold_is_its_last_checkpoint_and_best_is_used_by_name(fold: Path) -> None:
    trained = read_checkpoint(fold / "last.safetensors")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in trained.net.items()}
    change(fold / "best.safetensors", net=zeros, ema=None)
    for model in (fold, fold.parent):
        (net,) = load_predictor(model).nets
        weights = trained.net if trained.ema is None else trained.ema
        assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())
    (best,) = load_predictor(fold / "best.safetensors").nets
    assert not any(tensor.any() for tensor in best.state_dict().values())


def test_axes_that_training_did_not_mirror_are_never_averaged(fold: Path) -> None:
    config = deepcopy(read_checkpoint(fold / "last.safetensors").config)
    config["run"]["augment"]["mirror_axes"] = []
    change(fold / "last.safetensors", config=config)
    image = np.random.default_rng(0).random((40, 40, 2), dtype=np.float32)
    plain, mirrored = (
        load_predictor(fold, mirror=mirror)(image, spacing_mm=(3.0, 3.0, 8.0), probabilities=True).probabilities
        for mirror in (False, True)
    )
    np.testing.assert_array_equal(plain, mirrored)


def test_the_run_folder_in_an_output_folder_is_found(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to(tiny_run)
    assert checkpoint_paths(tmp_path) == [tmp_path / "run" / LAST]
    assert checkpoint_paths(tmp_path, fold="0") == checkpoint_paths(tmp_path)


@pytest.mark.parametrize(
    ("model", "fold"), [("", "*"), ("", "cv"), ("", "3"), ("fold_0", "3"), ("fold_0/last.safetensors", "0")]
)
def test_an_unknown_or_untrained_fold_is_refused(tiny_run: Path, model: str, fold: str, refused: Refused) -> None:
    with refused("--fold", got=fold):
        checkpoint_paths(tiny_run / model, fold=fold)


def test_a_half_trained_run_is_used_with_a_warning(fold: Path) -> None:
    progress = read_checkpoint(fold / "last.safetensors").progress
    change(fold / "last.safetensors", progress=progress | {"epochs_done": 1})
    with pytest.warns(UserWarning, match=r"last.safetensors has done 1 of 2 epochs"):
        load_predictor(fold)


@pytest.mark.parametrize("config", [None, {"epochs": 3}])
def test_a_checkpoint_of_another_trainer_is_refused(fold: Path, config: Any, refused: Refused) -> None:
    change(fold / "last.safetensors", config=config)
    with refused("MODEL", got=fold / "last.safetensors"):
        load_predictor(fold)


def test_weights_of_another_network_are_refused_in_one_line(fold: Path, refused: Refused) -> None:
    change(fold / "last.safetensors", net={}, ema=None)
    with refused(str(fold / "last.safetensors")) as error:
        load_predictor(fold)
    assert "\n" not in str(error.value)


# Configurations of an older version.


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Copy a configuration without dotted keys, as an older version stored it."""
    older = deepcopy(config)
    for key in keys:
        *parents, last = key.split(".")
        section = older
        for parent in parents:
            section = section[parent]
        section.pop(last, None)
    return older


def store(fold: Path, config: dict[str, Any]) -> None:
    for name in ("last", "previous", "best"):
        change(fold / f"{name}.safetensors", config=config)
    (fold / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture
def old_run(fold: Path) -> Path:
    """Tiny run as stored by a version without ``NEW_KEYS``."""
    config = read_checkpoint(fold / "last.safetensors").config
    store(fold, config | {"run": without(config["run"], *NEW_KEYS)})
    return fold.parent


def test_a_run_of_an_older_version_is_resumed_while_new_keys_have_their_default(
    old_run: Path, tiny_prepared: Path, tiny_config: MakeConfig
) -> None:
    stored, now = old_run / "fold_0" / "config.json", tiny_config().as_json()
    assert read_json(stored)["run"] == without(now, *NEW_KEYS) != now
    other = tiny_config("training.sampling.forced=chance")
    for check in (
        lambda: check_same_run(other, old_run),
        lambda: train(other, data=tiny_prepared, out=old_run, resume=True),
    ):
        with pytest.raises(UsageError) as error:
            check()
        assert "training.sampling.forced" in str(error.value)
    check_same_run(tiny_config(), old_run)
    train(tiny_config(), data=tiny_prepared, out=old_run, resume=True)
    assert read_json(stored)["run"] == now


def test_folds_of_an_older_and_a_newer_version_are_averaged(old_run: Path, tiny_run: Path, refused: Refused) -> None:
    shutil.copytree(tiny_run / "fold_0", old_run / "fold_1")
    newer = read_checkpoint(old_run / "fold_1" / "last.safetensors").config
    assert len(load_predictor(old_run).nets) == 2
    store(old_run / "fold_1", newer | {"run": newer["run"] | {"net": newer["run"]["net"] | {"stem_blocks": 1}}})
    with refused("MODEL", got=old_run / "fold_1" / "last.safetensors"):
        load_predictor(old_run)


def test_readable_parts_are_completed_and_others_returned_unchanged() -> None:
    removed = read_config("demo").as_json() | {"colour": "red"}
    for stored in ({"run": removed, "recipe": {"spacing": 1}}, {"run": None, "fold": "0"}, None):
        assert complete_config(stored) == stored
    recipe = PreprocessRecipe((1.0, 1.0, 1.0), "ct", ct_statistics=CtStatistics(-100, 300, 50, 25))
    complete = json.loads(json.dumps(recipe.to_json()))
    assert complete_config({"recipe": without(complete, "clip_percentiles")}) == {"recipe": complete}


@pytest.mark.parametrize(
    "net",
    [
        {"features": [32_000_000, 64_000_000, 64_000_000]},
        {"features": [4_000_000_000, 8, 8]},
        {"encoder_blocks": [3_000_000, 1, 1]},
        {"features": [4, 8, 9]},
    ],
    ids=["terabytes", "overflow", "millions of layers", "one channel more"],
)
def test_a_configuration_of_a_larger_network_than_the_weights_takes_no_memory(fold: Path, net: dict[str, Any]) -> None:
    checkpoint = read_checkpoint(fold / LAST.name)
    config = deepcopy(checkpoint.config)
    config["run"]["net"] |= net
    change(fold / LAST.name, config=config)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UsageError, match=r"last\.safetensors: got .*unchanged checkpoint"):
        load_predictor(fold)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"
    assert time.monotonic() - began < 10
