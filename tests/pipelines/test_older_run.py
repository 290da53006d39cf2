"""Run folder of an older version: it predicts and resumes; see ``fixtures/README.md``."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.run_files import read_json, rows_of
from uumamba.config.load import validate
from uumamba.pipelines import load_predictor
from uumamba.pipelines.train import train

OLDER_RUN = Path(__file__).parent / "fixtures" / "older_run"
CLASS_MEANS = (0.04278, 0.10181, 0.63721, 0.2182)
"""Mean probability of each class, printed by the older version for the image below."""


def test_an_older_run_predicts_as_it_did() -> None:
    with pytest.warns(UserWarning, match="has done 1 of 2 epochs"):
        predictor = load_predictor(OLDER_RUN)
    image = np.random.default_rng(0).random((40, 44, 5), dtype=np.float32)
    probabilities = predictor(image, spacing_mm=(2.0, 2.0, 8.0), probabilities=True).probabilities
    assert probabilities.mean(axis=(1, 2, 3)) == pytest.approx(CLASS_MEANS, abs=1e-3)


def test_an_older_run_resumes_and_ends_as_it_did(tiny_prepared: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(OLDER_RUN, tmp_path / "run"))
    config = validate(read_json(run / "fold_0" / "config.json")["run"], source="the older run")
    train(config, data=tiny_prepared, out=run, resume=True)
    first, second = rows_of(run)
    expected_first, expected_second = rows_of(OLDER_RUN)
    assert first == expected_first, "the row of the first epoch is kept"
    assert second.keys() == expected_second.keys()
    for key in ("loss", "dice", "dice_MYO", "lr"):
        assert second[key] == pytest.approx(expected_second[key], rel=0.01), key
    starts = read_json(run / "fold_0" / "manifest.json")["starts"]
    assert [start["epochs_done"] for start in starts] == [0, 1]
    assert starts[0]["cases"] == starts[1]["cases"]
