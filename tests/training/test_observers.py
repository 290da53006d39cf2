"""Observers follow a run and never end it; TensorBoard's file equals ``metrics.jsonl``."""

import signal
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.training.tiny_run import BATCHES, EPOCHS, act_before, assert_same_run, bits, build_trainer, rows_of
from uumamba.runtime.observer import Observer, RunView
from uumamba.training import LAST, ProgressPlot, StoppedOnRequest, make_display, read_checkpoint
from uumamba.training.run_folder import finite_scalars
from uumamba.training.track_tensorboard import TensorBoardTracker


class Notes(Observer):
    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_start(self, run: RunView) -> None:
        self.calls.append(("start", [row["epoch"] for row in run.rows], run.epochs_done, run.epochs))

    def on_epoch_start(self, run: RunView) -> None:
        self.calls.append(run.epochs_done)

    def on_step(self, run: RunView) -> None:
        assert isinstance(run.loss, torch.Tensor)
        self.calls.append("step")

    def on_epoch_saved(self, run: RunView, row: Mapping[str, Any]) -> None:
        assert run.rows[-1] == row
        self.calls.append(dict(row))

    def on_end(self, run: RunView, error: BaseException | None) -> None:
        self.calls.append(("end", type(error)))

    def rows(self) -> list[Any]:
        return [call for call in self.calls if isinstance(call, dict)]


class StepCounter(Observer):
    """Toy observer with state and a figure per epoch."""

    key = "step_counter"

    def __init__(self) -> None:
        self.steps = 0

    def on_step(self, run: RunView) -> None:
        self.steps += 1

    def on_epoch_end(self, run: RunView, row: dict[str, Any]) -> None:
        row["observed_steps"] = self.steps

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "sum": torch.tensor(float(self.steps))}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        assert state_dict["sum"] == state_dict["steps"]
        self.steps = state_dict["steps"]


EVENTS = ("on_start", "on_epoch_start", "on_step", "on_epoch_end", "on_epoch_saved", "on_end", "state_dict")


def fail_in(event: str, **attributes: Any) -> Observer:
    """Make an observer that raises in one of its methods."""

    def fail(*_: Any) -> None:
        raise OSError("no space left\non a device")

    return type("Failing", (Observer,), {event: fail, "key": "failing"} | attributes)()


def stop_in_third_epoch(folder: Path, *observers: Observer) -> None:
    def ask() -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(StoppedOnRequest):
        act_before(build_trainer(folder, observers=observers), "augment", 2 * BATCHES + 1, ask).fit()


def recorded(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder), purge_orphaned_data=False).Reload()
    return [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]


def test_observers_follow_every_epoch_and_step_with_or_without_a_folder(tmp_path: Path) -> None:
    notes, without = Notes(), Notes()
    build_trainer(tmp_path, observers=(notes,)).fit()
    build_trainer(None, observers=(without,)).fit()
    epochs = [(epoch, *["step"] * BATCHES, row) for epoch, row in enumerate(rows_of(tmp_path))]
    assert notes.calls == [("start", [], 0, 4), *(call for calls in epochs for call in calls), ("end", type(None))]
    assert [row["epoch"] for row in without.rows()] == [0, 1, 2, 3]


def test_after_a_resume_observers_see_earlier_rows_and_tensorboard_has_each_epoch_once(tmp_path: Path) -> None:
    board = tmp_path / "tensorboard"
    stop_in_third_epoch(tmp_path, before := Notes(), TensorBoardTracker(board))
    assert before.calls[-1] == ("end", StoppedOnRequest)
    build_trainer(tmp_path, observers=(after := Notes(), TensorBoardTracker(board))).fit(resume=True)
    rows = rows_of(tmp_path)
    assert [row["epoch"] for row in before.rows()] == [0, 1]
    assert (after.calls[0], after.rows()) == (("start", [0, 1], 2, 4), rows[2:])
    for name in ("loss", "dice", "lr", "seconds"):
        assert recorded(board, name) == [(row["epoch"] + 1, row[name]) for row in rows]
    assert recorded(board, "loss_weights/region") == [(row["epoch"] + 1, row["loss_weights"]["region"]) for row in rows]


@pytest.mark.parametrize("event", EVENTS)
def test_an_observer_that_raises_is_reported_once_and_the_run_is_the_same(
    event: str, unstopped: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    build_trainer(tmp_path, observers=(fail_in(event), notes := Notes()), log=said.append).fit()
    assert len(notes.rows()) == EPOCHS
    reports = [line for line in said if "failed" in line]
    assert reports == ["Failing failed (OSError: no space left) and is left out; training continues."]
    assert_same_run(tmp_path, unstopped)


def test_an_observer_that_cannot_load_its_state_is_reported_once_and_the_run_resumes(
    unstopped: Path, tmp_path: Path
) -> None:
    class Stateful(Observer):
        key = "failing"

        def state_dict(self) -> dict[str, Any]:
            return {"steps": 1}

    stop_in_third_epoch(tmp_path, Stateful())
    said: list[str] = []
    build_trainer(tmp_path, observers=(fail_in("load_state_dict"),), log=said.append).fit(resume=True)
    reports = [line for line in said if "failed" in line]
    assert reports == ["Failing failed (OSError: no space left) and is left out; training continues."]
    assert_same_run(tmp_path, unstopped)


def test_an_observer_that_cannot_show_a_message_is_reported_once_and_the_run_is_the_same(
    unstopped: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    observers = (fail_in("on_message"), fail_in("on_step", key="other"))
    build_trainer(tmp_path, observers=observers, log=said.append).fit()
    reports = [line for line in said if "failed" in line]
    assert reports == ["Failing failed (OSError: no space left) and is left out; training continues."] * 2
    assert_same_run(tmp_path, unstopped)


@pytest.mark.usefixtures("plots")
@pytest.mark.parametrize("broken", ["display", "bar", "plot", "tracker"])
def test_a_display_plot_or_tracker_that_raises_does_not_end_the_run(
    broken: str, unstopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("uumamba.training.progress_plot.draw_progress", fail)
    observer = {
        "display": lambda: make_display(False, fail),
        "bar": lambda: make_display(True),
        "plot": ProgressPlot,
        "tracker": lambda: TensorBoardTracker(tmp_path / "metrics.jsonl"),  # a file where a folder should be
    }[broken]()
    if broken == "bar":
        monkeypatch.setattr("rich.console.Console.print", fail)
        monkeypatch.setattr("rich.progress.Progress.update", fail)
    trainer = build_trainer(tmp_path)
    trainer.observers._observers = [observer, trainer.objective]
    trainer.fit()
    assert f"{type(observer).__name__} failed (" in capsys.readouterr().err, "on stderr, as no display is left"
    assert_same_run(tmp_path, unstopped)


def test_an_observer_that_must_not_fail_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space left"):
        build_trainer(tmp_path, observers=(fail_in("on_step", may_fail=False),)).fit()


@pytest.mark.parametrize("value", [{1}, torch.ones(1)], ids=["set", "tensor"])
def test_a_figure_that_is_not_json_is_its_observers_error(value: Any, tmp_path: Path) -> None:
    class Figure(Observer):
        def on_epoch_end(self, run: RunView, row: dict[str, Any]) -> None:
            row["figure"] = value

    said: list[str] = []
    build_trainer(tmp_path, observers=(Figure(),), log=said.append).fit()
    assert [line for line in said if "Figure failed (TypeError" in line]
    assert all("figure" not in row for row in rows_of(tmp_path))


def test_an_observer_adds_values_and_replaces_none(unstopped: Path, tmp_path: Path) -> None:
    class Figure(Observer):
        def on_epoch_end(self, run: RunView, row: dict[str, Any]) -> None:
            row |= {"epoch": None, "loss": 0.0, "figures": [float("nan"), {"best": float("inf")}]}

    build_trainer(tmp_path, observers=(Figure(),)).fit()
    rows = rows_of(tmp_path)
    assert [row.pop("figures") for row in rows] == [[None, {"best": None}]] * EPOCHS
    timeless = [[row | {"seconds": 0, "data_wait": 0} for row in found] for found in (rows, rows_of(unstopped))]
    assert timeless[0] == timeless[1]


def test_a_state_that_no_checkpoint_can_hold_is_its_observers_error(tmp_path: Path) -> None:
    class Odd(StepCounter):
        def state_dict(self) -> dict[str, Any]:
            return {"steps": {1, 2}}

    said: list[str] = []
    build_trainer(tmp_path, observers=(Odd(),), log=said.append).fit()
    assert [line for line in said if "Odd failed (UsageError" in line]


def test_a_run_resumes_with_an_observer_more_and_one_less(unstopped: Path, tmp_path: Path) -> None:
    stop_in_third_epoch(tmp_path)
    assert b"observers" not in (tmp_path / LAST).read_bytes(), "the layout without observers' state is unchanged"
    build_trainer(tmp_path, observers=(more := StepCounter(),), epochs=3).fit(resume=True)
    assert more.steps == BATCHES - 1, "from the step where the run was stopped"
    assert read_checkpoint(tmp_path / LAST).observers["step_counter"]["steps"] == BATCHES - 1
    build_trainer(tmp_path, observers=(again := StepCounter(),)).fit(resume=True)
    assert again.steps == 2 * BATCHES - 1
    assert [row.get("observed_steps") for row in rows_of(tmp_path)] == [None, None, BATCHES - 1, 2 * BATCHES - 1]
    expected = bits(unstopped / LAST)
    found = vars(read_checkpoint(tmp_path / LAST))
    assert {name: bits(tmp_path / LAST)[name] for name in expected if name != "rest"} == {
        name: value for name, value in expected.items() if name != "rest"
    }
    assert found["observers"]["step_counter"]["steps"] == again.steps
    build_trainer(tmp_path, epochs=5).fit(resume=True)
    assert read_checkpoint(tmp_path / LAST).observers == {}


def test_observers_are_observers_and_their_keys_differ(refused: Any) -> None:
    with refused("observers", got="object"):
        build_trainer(None, observers=(object(),))
    with refused("observers", got="keys step_counter, step_counter"):
        build_trainer(None, observers=(StepCounter(), StepCounter()))


def test_a_skipped_step_is_shown_to_observers() -> None:
    skipped: list[bool] = []

    class Skips(Observer):
        def on_step(self, run: RunView) -> None:
            skipped.append(run.was_skipped)

    trainer = build_trainer(None, observers=(Skips(),), epochs=1, validate=None)
    values = iter([1.0, float("nan"), 1.0, 1.0, 1.0])
    trainer.prefetcher.augment = lambda batch: batch | {"image": batch["image"] * next(values)}
    trainer.fit()
    assert skipped == [False, True, False, False, False]


def start(tracker: Observer, rows: list[dict[str, Any]], **values: Any) -> RunView:
    run = RunView(rows=rows, epochs_done=len(rows), epochs=5)
    tracker.on_start(run)
    return replace(run, **values)


def test_tensorboard_drops_epochs_after_the_checkpoint_and_adds_missing_ones(tmp_path: Path) -> None:
    rows = [{"epoch": epoch, "loss": 1.0 / (1 + epoch), "dice": None, "seconds": 5.0} for epoch in range(5)]
    ahead = TensorBoardTracker(tmp_path)
    run = start(ahead, [])
    for row in rows[:4]:
        ahead.on_epoch_saved(run, row)
    resumed = TensorBoardTracker(tmp_path)  # the tracker before was killed and never ended
    run = start(resumed, rows[:2])
    assert [step for step, _ in recorded(tmp_path, "loss")] == [1, 2]
    resumed.on_epoch_saved(run, rows[2])
    resumed.on_end(run, None)
    late = TensorBoardTracker(tmp_path)
    late.on_end(start(late, rows), None)
    assert recorded(tmp_path, "loss") == [(row["epoch"] + 1, row["loss"]) for row in rows]
    events = EventAccumulator(str(tmp_path)).Reload()
    times = [event.wall_time for event in events.Scalars("loss")]
    assert [round(after - before, 3) for before, after in pairwise(times)] == [5.0] * 4
    assert "dice" not in events.Tags()["scalars"]


def test_scalars_are_the_finite_numbers() -> None:
    row = {"epoch": 1, "loss": float("nan"), "dice": float("inf"), "lr": 0.5, "note": "text", "flag": True, "n": None}
    assert finite_scalars(row) == {"lr": 0.5}
