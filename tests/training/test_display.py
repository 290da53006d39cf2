"""Progress bar on a terminal, one line per epoch in a log."""

import pytest

from uumamba.training import Budget
from uumamba.training.display import BarDisplay, LineDisplay, make_display


def test_a_log_gets_one_line_per_epoch_with_the_time_left() -> None:
    lines: list[str] = []
    with make_display(None, lines.append) as display:
        assert isinstance(display, LineDisplay), "without a terminal"
        display.begin(epochs=3, done=1, budget=Budget())
        for _ in range(5):
            display.step()
        display.epoch({"epoch": 1, "loss": 0.5, "dice": None, "lr": 0.001, "data_wait": 0.034, "seconds": 90.0})
        display.epoch({"epoch": 2, "loss": 0.25, "dice": 0.75, "lr": 0.0005, "seconds": 90.0})
    assert lines == [
        "resuming after epoch 1/3",
        "epoch 2/3  loss 0.5000  lr 0.001  data wait 3.4%  1 min 30 s  left 1 min 30 s",
        "epoch 3/3  loss 0.2500  dice 0.7500  lr 0.0005  1 min 30 s",
    ]


def test_lines_go_to_stderr_unless_a_log_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    with make_display(False, None) as display:
        display.say("hello")
    assert capsys.readouterr() == ("", "hello\n")


def test_the_bar_shows_the_line_of_the_latest_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    display = make_display(True, None)
    assert isinstance(display, BarDisplay)
    with display:
        display.begin(epochs=2, done=0, budget=Budget())
        for epoch in range(2):
            for _ in range(3):
                display.step()
            display.epoch({"epoch": epoch, "loss": 0.5, "dice": 0.75, "lr": 0.01, "seconds": 1.0})
        display.say("a damaged [file]")
    shown = capsys.readouterr().err
    for word in ("epoch 2/2", "loss 0.5000", "dice 0.7500", "a damaged [file]"):
        assert word in shown
