"""Calls of observers, their failures, and sentences for the user."""

from typing import Any

import pytest

from uumamba.runtime.observer import Observer, ObserverList, RunView
from uumamba.runtime.ranks import Alone


class Display(Observer):
    def __init__(self, *, broken: bool = False) -> None:
        self.said: list[str] = []
        self.broken = broken

    def on_message(self, sentence: str) -> bool:
        if self.broken:
            raise OSError("closed")
        self.said.append(sentence)
        return True


class Everywhere(Observer):
    rank_zero_only = False

    def __init__(self) -> None:
        self.steps = 0

    def on_step(self, run: RunView) -> None:
        self.steps += 1


def second_rank() -> RunView:
    ranks = Alone()
    ranks.rank, ranks.count, ranks.is_rank_zero = 1, 2, False
    return RunView(ranks=ranks)


def test_a_sentence_reaches_every_display_or_else_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = Display(), Display()
    ObserverList([first, second, Observer()], RunView()).say("hello")
    assert first.said == second.said == ["hello"]
    assert capsys.readouterr().err == ""
    ObserverList([Observer()], RunView()).say("hello")
    assert capsys.readouterr().err == "hello\n"
    ObserverList([Observer()], second_rank()).say("hello")
    assert capsys.readouterr().err == "", "rank 0 says it"


def test_displays_that_fail_together_are_each_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    observers = ObserverList([Display(broken=True), Display(broken=True)], RunView())
    observers.say("hello")
    lines = capsys.readouterr().err.splitlines()
    report = "Display failed (OSError: closed) and is left out; training continues."
    assert sorted(lines) == sorted([report, report, "hello"])
    observers.say("again")
    assert capsys.readouterr().err == "again\n"


def test_other_ranks_call_only_observers_of_every_rank() -> None:
    class RankZero(Everywhere):
        rank_zero_only = True

    zero, everywhere = RankZero(), Everywhere()
    for run in (RunView(), second_rank()):
        ObserverList([zero, everywhere], run).on_step()
    assert (zero.steps, everywhere.steps) == (1, 2)


def test_the_end_is_told_with_the_error_that_ends_the_block() -> None:
    ends: list[Any] = []

    class Ends(Observer):
        def on_end(self, run: RunView, error: BaseException | None) -> None:
            ends.append(error)

    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt), ObserverList([Ends()], RunView()):
        raise error
    with ObserverList([Ends()], RunView()):
        pass
    assert ends == [error, None]
