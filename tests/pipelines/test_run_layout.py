"""Folds and seeds have their places in a run, and a run of one seed is never mixed with one of several."""

from pathlib import Path

import pytest

from uumamba.cli import _devices, _seeds
from uumamba.pipelines.models import checkpoint_paths
from uumamba.pipelines.run_layout import fold_folders, wanted_folders
from uumamba.runtime.errors import UsageError


def touch(run: Path, *names: str) -> list[Path]:
    """Checkpoints as far as their place goes."""
    paths = [run / name / "last.safetensors" for name in names]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.touch()
    return paths


def test_one_seed_lies_in_the_run_and_several_each_in_a_folder(tmp_path: Path) -> None:
    assert [each.name for each in wanted_folders(tmp_path, fold="3")] == ["fold_3"]
    assert [each.name for each in wanted_folders(tmp_path, fold="cv", seeds=[7, 1])] == [
        *(f"seed_7/fold_{fold}" for fold in range(5)),
        *(f"seed_1/fold_{fold}" for fold in range(5)),
    ]


def test_folders_are_found_in_the_order_of_seeds_as_numbers(tmp_path: Path) -> None:
    touch(tmp_path, "seed_10/fold_0", "seed_9/fold_1", "seed_9/fold_0", "seed_x/fold_0", "fold_9")
    assert [each.title for each in fold_folders(tmp_path)] == [
        "seed 9, fold 0",
        "seed 9, fold 1",
        "seed 10, fold 0",
    ]


def test_every_seed_of_a_fold_is_averaged_and_a_seed_is_a_run_of_its_own(tmp_path: Path) -> None:
    zero, one, other = touch(tmp_path, "seed_0/fold_0", "seed_1/fold_0", "seed_1/fold_2")
    assert checkpoint_paths(tmp_path) == [zero, one, other]
    assert checkpoint_paths(tmp_path, fold="0") == [zero, one]
    assert checkpoint_paths(tmp_path / "seed_1") == [one, other]
    with pytest.raises(UsageError, match="holds no checkpoint of fold 1, only of 0, 2"):
        checkpoint_paths(tmp_path, fold="1")


@pytest.mark.parametrize(
    ("there", "seeds", "sentence"),
    [
        ("fold_0", [0, 1], r"was begun without --seeds \(fold_0 is there\); go on so, or choose another folder"),
        ("seed_3/fold_0", None, r"was begun with --seeds \(seed_3/fold_0 is there\)"),
    ],
)
def test_a_run_of_one_seed_is_not_mixed_with_one_of_several(
    tmp_path: Path, there: str, seeds: list[int] | None, sentence: str
) -> None:
    touch(tmp_path, there)
    with pytest.raises(UsageError, match=sentence):
        wanted_folders(tmp_path, fold="0", seeds=seeds)


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1, 0]])
def test_seeds_are_different_numbers_from_0_on(tmp_path: Path, seeds: list[int]) -> None:
    with pytest.raises(UsageError, match="are not different numbers from 0 on"):
        wanted_folders(tmp_path, fold="0", seeds=seeds)


def test_seeds_and_devices_are_read_from_the_command_line() -> None:
    assert _seeds(None) is None
    assert _seeds("0,1, 2") == [0, 1, 2]
    with pytest.raises(UsageError, match="--seeds 'zero' is no list of numbers; write them as 0,1,2"):
        _seeds("zero")
    assert _devices("cpu, cpu") == "cpu,cpu"
    with pytest.raises(UsageError, match="There is no device 'gpu'"):
        _devices("cpu,gpu")
