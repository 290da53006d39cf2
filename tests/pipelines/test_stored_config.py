"""A configuration that an older program stored: keys that have come since are no difference while they are default."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uumamba.config import RunConfig, read_config
from uumamba.data.preprocess import CtStatistics, PreprocessRecipe
from uumamba.pipelines import load_predictor
from uumamba.pipelines.stored_config import complete_config
from uumamba.pipelines.train import refuse_another_run, train
from uumamba.runtime.errors import UsageError
from uumamba.training.checkpoint import read_checkpoint, save_checkpoint

MakeConfig = Callable[..., RunConfig]
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
"""Each stands at its default in the tiny run."""


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    """A copy that lacks those dotted keys, as a program that did not know them would have stored it."""
    older = deepcopy(config)
    for key in keys:
        *parents, last = key.split(".")
        place = older
        for parent in parents:
            place = place[parent]
        place.pop(last, None)
    return older


def store(fold: Path, config: dict[str, Any]) -> None:
    """Put a configuration into a fold's checkpoints and beside them."""
    for name in ("last", "previous", "best"):
        path = fold / f"{name}.safetensors"
        save_checkpoint(path, replace(read_checkpoint(path), config=config))
    (fold / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.fixture
def old_run(tiny_run: Path, tmp_path: Path) -> Path:
    """The tiny run as a program of before ``NEW_KEYS`` would have left it."""
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    config = read_checkpoint(run / "fold_0" / "last.safetensors").config
    store(run / "fold_0", config | {"run": without(config["run"], *NEW_KEYS)})
    return run


def test_a_run_of_an_older_program_is_resumed_while_new_keys_are_at_their_default(
    old_run: Path, tiny_prepared: Path, tiny_config: MakeConfig
) -> None:
    stored, now = old_run / "fold_0" / "config.json", tiny_config().as_json()
    assert json.loads(stored.read_text(encoding="utf-8"))["run"] == without(now, *NEW_KEYS) != now
    refuse_another_run(tiny_config(), old_run)
    train(tiny_config(), data=tiny_prepared, out=old_run, resume=True)
    assert json.loads(stored.read_text(encoding="utf-8"))["run"] == now


def test_a_new_key_that_is_set_to_something_else_is_a_difference(
    old_run: Path, tiny_prepared: Path, tiny_config: MakeConfig
) -> None:
    other = tiny_config("training.sampling.forced=chance")
    sentence = r"another configuration:\n  (run\.)?training\.sampling\.forced: share there, chance here\nResume"
    with pytest.raises(UsageError, match=sentence):
        refuse_another_run(other, old_run)
    with pytest.raises(UsageError, match=sentence):
        train(other, data=tiny_prepared, out=old_run, resume=True)


def test_folds_of_an_older_and_a_newer_program_are_averaged(old_run: Path, tiny_run: Path) -> None:
    shutil.copytree(tiny_run / "fold_0", old_run / "fold_1")
    newer = read_checkpoint(old_run / "fold_1" / "last.safetensors").config
    assert len(load_predictor(old_run).nets) == 2
    store(old_run / "fold_1", newer | {"run": newer["run"] | {"net": newer["run"]["net"] | {"stem_blocks": 1}}})
    with pytest.raises(UsageError, match="trained with another network"):
        load_predictor(old_run)


def test_a_part_that_cannot_be_read_is_compared_as_it_is() -> None:
    config = read_config("demo").as_json()
    gone = config | {"colour": "red"}
    assert complete_config({"run": gone, "recipe": {"spacing": 1}}) == {"run": gone, "recipe": {"spacing": 1}}
    assert complete_config({"run": None, "fold": "0"}) == {"run": None, "fold": "0"}
    assert complete_config(None) is None


def test_a_recipe_is_completed_too() -> None:
    recipe = PreprocessRecipe((1.0, 1.0, 1.0), "ct", ct_statistics=CtStatistics(-100, 300, 50, 25))
    stored = json.loads(json.dumps(recipe.to_json()))
    assert complete_config({"recipe": without(stored, "clip_percentiles")}) == {"recipe": stored}
