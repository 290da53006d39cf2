"""Trackers are named in the configuration, refused when they are not installed, and no part of what is stored."""

from pathlib import Path

import pytest

from uumamba.config import read_config, track
from uumamba.config.track import build_trackers, check_trackers
from uumamba.runtime.errors import UsageError


def test_a_tracker_is_built_once_however_often_it_is_named(tmp_path: Path) -> None:
    made = build_trackers(("tensorboard", "tensorboard"), run=tmp_path, fold="fold_0", experiment="e", parameters={})
    assert [type(each).__name__ for each in made] == ["TensorBoardTracker"]
    assert not list(tmp_path.iterdir()), "nothing is written before training begins"


def test_what_is_installed_is_not_refused() -> None:
    check_trackers(("tensorboard",))


def test_a_missing_package_is_one_sentence_with_the_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(track.PACKAGES, "mlflow", ("mlflow_that_nobody_has",))
    with pytest.raises(UsageError, match=r"mlflow needs mlflow_that_nobody_has, .*; `pip install 'uumamba\[track\]'`"):
        check_trackers(("mlflow",))


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(UsageError, match=r"track.0: Input should be 'tensorboard' or 'mlflow', found 'wandb'"):
        read_config("demo", ["track=[wandb]"])


def test_following_a_run_is_no_part_of_what_decides_it() -> None:
    followed = read_config("demo", ["track=[tensorboard]"])
    assert followed.track == ("tensorboard",)
    assert followed.as_json() == read_config("demo").as_json()
