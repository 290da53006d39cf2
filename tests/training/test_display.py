"""Progress bar on a terminal, one line per epoch in a log."""

import pytest

from uumamba.runtime.observer import ObserverList, RunView
from uumamba.training import make_display
from uumamba.training.display import BarDisplay, LineDisplay


def test_a_log_gets_one_line_per_epoch_with_the_time_left() -> None:
    lines: list[str] = []
    display = make_display(log=lines.append)
    assert isinstance(display, LineDisplay), "without a terminal"
    with ObserverList([display], RunView(epochs=3, epochs_done=1)) as observers:
        observers.on_start()
        for _ in range(5):
            observers.on_step()
        row = {"epoch": 1, "loss": 0.5, "dice": None, "lr": 0.001, "data_wait": 0.034, "seconds": 90.0}
        observers.on_epoch_saved(row)
        observers.on_epoch_saved({"epoch": 2, "loss": 0.25, "dice": 0.75, "lr": 0.0005, "seconds": 90.0})
    assert lines == [
        "resuming after epoch 1/3",
        "epoch 2/3  loss 0.5000  lr 0.001  data wait 3.4%  1 min 30 s  left 1 min 30 s",
        "epoch 3/3  loss 0.2500  dice 0.7500  lr 0.0005  1 min 30 s",
    ]


def test_lines_go_to_stderr_unless_a_log_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    make_display(False).say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_the_bar_shows_the_line_of_the_latest_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    display = make_display(True)
    assert isinstance(display, BarDisplay)
    with ObserverList([display], RunView(epochs=2)) as observers:
        observers.on_start()
        for epoch in range(2):
            for _ in range(3):
                observers.on_step()
            observers.on_epoch_saved({"epoch": epoch, "loss": 0.5, "dice": 0.75, "lr": 0.01, "seconds": 1.0})
        observers.say("a damaged [file]")
    shown = capsys.readouterr().err
    for word in ("epoch 2/2", "loss 0.5000", "dice 0.7500", "a damaged [file]"):
        assert word in shown
