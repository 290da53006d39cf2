"""Followers get the rows of ``metrics.jsonl``, once each, and end no training; TensorBoard's file equals the rows."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from uumamba.training import RunLog, StoppedOnRequest, Trainer
from uumamba.training.following import Following, finished_at, scalars
from uumamba.training.track_tensorboard import TensorBoardTracker

Build = Callable[..., Trainer]


class Notes:
    """A follower that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def begin(self, rows: Sequence[Mapping[str, Any]], *, done: int, epochs: int) -> None:
        self.told.append(("begin", [row["epoch"] for row in rows], done, epochs))

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.told.append(dict(row))

    def end(self) -> None:
        self.told.append("end")


class Torn(Notes):
    """One whose disk is full from the second epoch on."""

    def epoch(self, row: Mapping[str, Any]) -> None:
        super().epoch(row)
        if row["epoch"] == 1:
            raise OSError("no space left")


def recorded(folder: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values of a scalar in every event file of a folder, nothing left out by TensorBoard's own purge."""
    events = EventAccumulator(str(folder), purge_orphaned_data=False).Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return RunLog(folder / "metrics.jsonl").rows()


def stop_in_epoch(trainer: Trainer, epoch: int) -> None:
    """Ask for a stop as a cluster does, before the epoch's first step."""
    batches = trainer.batches

    def asking(number: int) -> Any:
        if number == epoch:
            trainer._stop.asked = "SIGTERM"
        return batches(number)

    trainer.batches = asking


def test_a_follower_is_told_the_rows_of_the_log_and_the_end(build_trainer: Build, tmp_path: Path) -> None:
    notes = Notes()
    build_trainer(tmp_path, followers=(notes,)).fit()
    assert notes.told == [("begin", [], 0, 4), *rows_of(tmp_path), "end"]


def test_without_a_folder_a_follower_is_told_all_the_same(build_trainer: Build) -> None:
    notes = Notes()
    build_trainer(None, followers=(notes,)).fit()
    assert [row["epoch"] for row in notes.told[1:-1]] == [0, 1, 2, 3]


def test_after_a_resume_a_follower_begins_with_the_rows_so_far(build_trainer: Build, tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, followers=(before := Notes(),))
    stop_in_epoch(trainer, 2)
    with pytest.raises(StoppedOnRequest, match="Stopped by SIGTERM"):
        trainer.fit()
    build_trainer(tmp_path, followers=(after := Notes(),)).fit(resume=True)
    assert [told["epoch"] for told in before.told[1:-1]] == [0, 1]
    assert after.told == [("begin", [0, 1], 2, 4), *rows_of(tmp_path)[2:], "end"]


def test_a_follower_that_fails_is_said_and_left_and_the_training_goes_on(build_trainer: Build, tmp_path: Path) -> None:
    said: list[str] = []
    build_trainer(tmp_path, followers=(torn := Torn(), notes := Notes()), log=said.append, progress=False).fit()
    assert [row["epoch"] for row in torn.told[1:]] == [0, 1], "it is told nothing after it failed, not even the end"
    assert len(notes.told) == 2 + len(rows_of(tmp_path)) == 6
    assert [line for line in said if "Torn failed (OSError: no space left) and is left out" in line]


def test_a_follower_that_cannot_begin_is_an_error_before_the_first_step() -> None:
    class Closed(Notes):
        def begin(self, rows: Sequence[Mapping[str, Any]], *, done: int, epochs: int) -> None:
            raise OSError("read-only")

    with pytest.raises(OSError, match="read-only"), Following((Closed(),), say=print) as following:
        following.begin([], done=0, epochs=1)


def test_tensorboard_has_each_epoch_once_after_a_stop_and_a_resume(build_trainer: Build, tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, followers=(TensorBoardTracker(tmp_path / "tensorboard"),))
    stop_in_epoch(trainer, 2)
    with pytest.raises(StoppedOnRequest, match="Stopped by SIGTERM"):
        trainer.fit()
    build_trainer(tmp_path, followers=(TensorBoardTracker(tmp_path / "tensorboard"),)).fit(resume=True)
    for name in ("loss", "dice", "lr", "seconds"):
        assert recorded(tmp_path / "tensorboard", name) == [(row["epoch"] + 1, row[name]) for row in rows_of(tmp_path)]
    assert recorded(tmp_path / "tensorboard", "loss_weights/region") == [
        (row["epoch"] + 1, row["loss_weights"]["region"]) for row in rows_of(tmp_path)
    ]


def test_tensorboard_forgets_epochs_that_the_checkpoint_does_not_know_and_fills_what_it_lacks(tmp_path: Path) -> None:
    rows = [{"epoch": epoch, "loss": 1.0 / (1 + epoch), "dice": None, "seconds": 5.0} for epoch in range(5)]
    ahead = TensorBoardTracker(tmp_path)
    ahead.begin([], done=0, epochs=5)
    for row in rows[:4]:
        ahead.epoch(row)
    resumed = TensorBoardTracker(tmp_path)  # the one before was killed and never ended
    resumed.begin(rows[:2], done=2, epochs=5)
    assert [step for step, _ in recorded(tmp_path, "loss")] == [1, 2]
    resumed.epoch(rows[2])
    resumed.end()
    late = TensorBoardTracker(tmp_path)
    late.begin(rows, done=5, epochs=5)
    late.end()
    assert recorded(tmp_path, "loss") == [(row["epoch"] + 1, row["loss"]) for row in rows]
    times = [event.wall_time for event in EventAccumulator(str(tmp_path)).Reload().Scalars("loss")]
    assert [round(after - before, 3) for before, after in pairwise(times)] == [5.0] * 4
    assert "dice" not in EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]


def test_scalars_leave_out_what_is_no_finite_number() -> None:
    row = {"epoch": 1, "loss": float("nan"), "dice": float("inf"), "lr": 0.5, "note": "text", "flag": True, "n": None}
    assert scalars(row) == {"lr": 0.5}


def test_epochs_that_were_recorded_nowhere_are_placed_by_their_seconds() -> None:
    rows = [{"seconds": 7.0}, {"seconds": 2.0}, {"seconds": None}]
    assert finished_at(rows, 50.0) == [48.0, 50.0, 50.0]
    assert finished_at([], 50.0) == []
