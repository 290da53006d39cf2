"""Tests of postprocessing in runs and of models in the package."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.ship_model import strip_checkpoint
from tests.pipelines.run_files import LAST, MakeConfig, read_json
from uumamba.data.prepared import PreparedFolder
from uumamba.inference.postprocess import LargestComponents
from uumamba.pipelines import load_predictor, models
from uumamba.pipelines.jobs import list_jobs
from uumamba.pipelines.postprocessing import CHOICE_NAME, read_choice
from uumamba.pipelines.train import train
from uumamba.runtime.errors import UsageError
from uumamba.training import read_checkpoint, save_checkpoint

SCAN, SPACING_MM = np.random.default_rng(0).normal(size=(60, 60, 4)), (3.0, 3.0, 10.0)


def write_choice(fold: Path, *names: str) -> Path:
    fold.mkdir(parents=True, exist_ok=True)
    stored = {"postprocess": names, "dice": 0.5, "dice_without": 0.5, "cases": 2, "steps": 6}
    (fold / CHOICE_NAME).write_text(json.dumps(stored))
    return fold


def test_a_choice_is_stored_after_training_and_used_for_prediction(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    config = tiny_config("inference.postprocess=auto")
    train(config, data=tiny_prepared, out=tmp_path, progress=False)
    fold = tmp_path / "fold_0"
    stored = read_json(fold / CHOICE_NAME)
    assert stored.keys() == {"postprocess", "dice", "dice_without", "cases", "steps"}
    assert stored["dice"] >= stored["dice_without"]
    assert (stored["cases"], stored["steps"]) == (2, 6)
    write_choice(fold, "union", "LV")
    predictor = load_predictor(tmp_path)
    assert predictor.postprocess == LargestComponents(union=True, values=(3,))
    found = predictor(SCAN, spacing_mm=SPACING_MM).label
    predictor.postprocess = None
    raw = predictor(SCAN, spacing_mm=SPACING_MM).label
    assert np.array_equal(LargestComponents(union=True, values=(3,))(raw), found)
    train(config, data=tiny_prepared, out=tmp_path, resume=True, progress=False)
    assert read_json(fold / CHOICE_NAME)["postprocess"] == ["union", "LV"], "a choice of the same steps is kept"


def test_a_run_may_be_resumed_with_other_options_of_prediction(
    tiny_prepared: Path, tiny_config: MakeConfig, tiny_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    train(tiny_config("inference.postprocess=auto"), data=tiny_prepared, out=run, resume=True, progress=False)
    assert (run / "fold_0" / CHOICE_NAME).is_file()
    write_choice(run / "fold_0", "RV")
    assert load_predictor(run).postprocess == LargestComponents(values=(1,)), (
        "although the weights were finished before"
    )
    train(tiny_config(), data=tiny_prepared, out=run, resume=True, progress=False)
    assert load_predictor(run).postprocess is None


def test_masks_that_most_folds_chose_are_kept(tmp_path: Path, refused: Any) -> None:
    folds = [write_choice(tmp_path / "0", "union", "LV"), write_choice(tmp_path / "1", "LV"), tmp_path / "2"]
    assert read_choice(folds) == ("LV",)
    assert read_choice([tmp_path / "2"]) == ()
    (tmp_path / "0" / CHOICE_NAME).write_text('{"postprocess": 3')
    with refused(str(tmp_path / "0" / CHOICE_NAME)):
        read_choice(folds)


@pytest.mark.parametrize("wrong", ["[union, spleen]", "[lv]"])
def test_a_name_that_is_no_structure_is_refused_before_training(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, wrong: str, refused: Any
) -> None:
    config = tiny_config(f"inference.postprocess={wrong}")
    with refused("inference.postprocess"):
        list_jobs(config, PreparedFolder(tiny_prepared), fold="0", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_in_the_package_has_a_name(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    monkeypatch.setattr(models, "SHIPPED", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    assert models.shipped_models() == []
    with refused("MODEL", got="toy, which does not exist"):
        load_predictor("toy")
    folder = tmp_path / "models" / "toy"
    folder.mkdir(parents=True)
    save_checkpoint(folder / "model.safetensors", strip_checkpoint(read_checkpoint(tiny_run / LAST)))
    assert models.shipped_models() == ["toy"]
    assert models.find_card("toy") == folder / "CARD.md"
    found = load_predictor("toy")(SCAN, spacing_mm=SPACING_MM).label
    assert np.mean(found == load_predictor(tiny_run)(SCAN, spacing_mm=SPACING_MM).label) > 0.99
    (tmp_path / "toy").mkdir()  # a folder without a model does not hide it
    assert models.checkpoint_paths("toy") == [folder / "model.safetensors"]
    shutil.copytree(tiny_run, tmp_path / "toy", dirs_exist_ok=True)
    with pytest.warns(UserWarning, match="toy is your path of this name"):
        assert models.checkpoint_paths("toy") == [Path("toy") / LAST]
    assert models.find_card("toy") is None
    with pytest.raises(UsageError, match="one of the shipped models: toy"):
        load_predictor("other")
