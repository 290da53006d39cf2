"""Callbacks get each row once; TensorBoard's file equals ``metrics.jsonl``."""

import signal
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.tiny_run import BATCHES, act_before, build_trainer, rows_of
from uumamba.training import StoppedOnRequest
from uumamba.training.callback_list import CallbackList, finite_scalars
from uumamba.training.track_tensorboard import TensorBoardTracker


class Notes:
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def begin(self, rows: Sequence[Mapping[str, Any]], *, done: int, epochs: int) -> None:
        self.calls.append(("begin", [row["epoch"] for row in rows], done, epochs))

    def epoch(self, row: Mapping[str, Any]) -> None:
        self.calls.append(dict(row))

    def end(self) -> None:
        self.calls.append("end")


class Failing(Notes):
    def epoch(self, row: Mapping[str, Any]) -> None:
        super().epoch(row)
        if row["epoch"] == 1:
            raise OSError("no space left")


def stop_in_third_epoch(folder: Path, *callbacks: Any) -> None:
    def ask() -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedOnRequest):
        act_before(build_trainer(folder, callbacks=callbacks), "augment", 2 * BATCHES + 1, ask).fit()


def recorded(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder), purge_orphaned_data=False).Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_callbacks_get_each_row_and_the_end_with_or_without_a_folder(tmp_path: Path) -> None:
    notes, without = Notes(), Notes()
    build_trainer(tmp_path, callbacks=(notes,)).fit()
    build_trainer(None, callbacks=(without,)).fit()
    assert notes.calls == [("begin", [], 0, 4), *rows_of(tmp_path), "end"]
    assert [row["epoch"] for row in without.calls[1:-1]] == [0, 1, 2, 3]


def test_after_a_resume_callbacks_begin_with_earlier_rows_and_tensorboard_has_each_epoch_once(
    tmp_path: Path,
) -> None:
    board = tmp_path / "tensorboard"
    stop_in_third_epoch(tmp_path, before := Notes(), TensorBoardTracker(board))
    build_trainer(tmp_path, callbacks=(after := Notes(), TensorBoardTracker(board))).fit(resume=True)
    rows = rows_of(tmp_path)
    assert [row["epoch"] for row in before.calls[1:-1]] == [0, 1]
    assert after.calls == [("begin", [0, 1], 2, 4), *rows[2:], "end"]
    for name in ("loss", "dice", "lr", "seconds"):
        assert recorded(board, name) == [(row["epoch"] + 1, row[name]) for row in rows]
    assert recorded(board, "loss_weights/region") == [(row["epoch"] + 1, row["loss_weights"]["region"]) for row in rows]


def test_a_failing_callback_is_reported_and_left_out_and_training_continues(tmp_path: Path) -> None:
    said: list[str] = []
    build_trainer(tmp_path, callbacks=(failing := Failing(), notes := Notes()), log=said.append).fit()
    assert [row["epoch"] for row in failing.calls[1:]] == [0, 1], "no call after it failed, not even the end"
    assert len(notes.calls) == 2 + len(rows_of(tmp_path)) == 6
    assert [line for line in said if "Failing failed (OSError: no space left)" in line]


def test_an_error_when_a_callback_begins_is_raised() -> None:
    closed = Mock(**{"begin.side_effect": OSError("read-only")})
    with pytest.raises(OSError, match="read-only"), CallbackList((closed,), say=print) as callbacks:
        callbacks.begin([], done=0, epochs=1)


def test_tensorboard_drops_epochs_after_the_checkpoint_and_adds_missing_ones(tmp_path: Path) -> None:
    rows = [{"epoch": epoch, "loss": 1.0 / (1 + epoch), "dice": None, "seconds": 5.0} for epoch in range(5)]
    ahead = TensorBoardTracker(tmp_path)
    ahead.begin([], done=0, epochs=5)
    for row in rows[:4]:
        ahead.epoch(row)
    resumed = TensorBoardTracker(tmp_path)  # the tracker before was killed and never ended
    resumed.begin(rows[:2], done=2, epochs=5)
    assert [step for step, _ in recorded(tmp_path, "loss")] == [1, 2]
    resumed.epoch(rows[2])
    resumed.end()
    late = TensorBoardTracker(tmp_path)
    late.begin(rows, done=5, epochs=5)
    late.end()
    assert recorded(tmp_path, "loss") == [(row["epoch"] + 1, row["loss"]) for row in rows]
    events = EventAccumulator(str(tmp_path)).Reload()
    times = [event.wall_time for event in events.Scalars("loss")]
    assert [round(after - before, 3) for before, after in pairwise(times)] == [5.0] * 4
    assert "dice" not in events.Tags()["scalars"]


def test_scalars_are_the_finite_numbers() -> None:
    row = {"epoch": 1, "loss": float("nan"), "dice": float("inf"), "lr": 0.5, "note": "text", "flag": True, "n": None}
    assert finite_scalars(row) == {"lr": 0.5}
