"""Runs whose spacing, patch and strides follow from the cases."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipelines.run_files import MakeConfig, read_json
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.jobs import list_jobs
from uumamba.pipelines.prepare import prepare_dataset
from uumamba.pipelines.run import run
from uumamba.pipelines.train import train

AUTO = ("preprocess.spacing_mm=[null,auto,auto]", "training.patch_size=auto", "net.strides=auto")


def test_a_run_with_auto_says_stores_and_uses_the_derived_values(
    tiny_raw: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    said: list[str] = []
    config = tiny_config(*AUTO)
    run(config, raw=tiny_raw, out=tmp_path / "run", say=said.append)
    derived = [sentence for sentence in said if sentence.startswith("auto: ")]
    stored = read_json(tmp_path / "run" / "run" / "fold_0" / "config.json")["run"]
    assert [sentence.partition(" = ")[0] for sentence in derived] == [
        "auto: preprocess.spacing_mm",
        "auto: net.strides",
        "auto: training.patch_size",
    ]
    for sentence in derived:
        section, key = sentence.removeprefix("auto: ").partition(" = ")[0].split(".")
        assert str(stored[section][key]) == sentence.partition(" = ")[2]
    recipe = PreparedFolder(tmp_path / "run" / "prepared").recipe
    assert list(recipe.spacing_mm) == stored["preprocess"]["spacing_mm"]
    assert recipe.spacing_mm[0] is None
    assert (tmp_path / "run" / "scores.csv").is_file()

    again: list[str] = []
    run(config, raw=tiny_raw, out=tmp_path / "run", say=again.append)  # resumes: equal values
    assert [sentence for sentence in again if sentence.startswith("auto: ")] == derived


def test_prepare_and_train_with_auto_are_the_run(
    tiny_raw: Path, tiny_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(*AUTO, "training.epochs=1", "training.batches_per_epoch=1")
    prepare_dataset(config, raw=tiny_raw, out=tmp_path / "prepared")
    assert "auto: preprocess.spacing_mm = [None, " in capsys.readouterr().err
    (fold,) = train(config, data=tmp_path / "prepared", out=tmp_path / "run")
    assert "auto: training.patch_size = [" in capsys.readouterr().err
    stored = read_json(fold / "config.json")["run"]
    folder = PreparedFolder(tmp_path / "prepared")
    shapes = [
        each.prepared_shape[1:]
        for each in folder.geometries(case.case_id for case in folder.manifest.select(split="training"))
    ]
    strides = np.prod(stored["net"]["strides"], axis=0)
    assert max(map(max, shapes)) < 192, "the patch covers the median slice"
    expected = np.ceil(np.round(np.median(shapes, axis=0)) / strides) * strides
    assert stored["training"]["patch_size"] == expected.tolist()


def test_jobs_of_a_configuration_with_auto_are_refused(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path, refused: Any
) -> None:
    with refused("preprocess.spacing_mm, training.patch_size, net.strides", got="auto"):
        list_jobs(tiny_config(*AUTO), PreparedFolder(tiny_prepared), fold="0", out=tmp_path)
