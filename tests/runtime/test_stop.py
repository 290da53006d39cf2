"""A request to stop, and one within another."""

import signal

import pytest

from uumamba.runtime.errors import EXIT_STOPPED_RESUMABLE
from uumamba.runtime.stop import StoppedOnRequest, StopRequest


def test_what_was_not_asked_is_not_followed() -> None:
    with StopRequest() as stop:
        stop.follow("in the middle")


def test_a_request_is_followed_where_the_work_can_be_resumed() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StoppedOnRequest, match=r"Stopped by SIGTERM in the middle\.") as stopped:
            stop.follow("in the middle")
    assert stopped.value.exit_code == EXIT_STOPPED_RESUMABLE


def test_what_an_inner_one_is_asked_the_outer_knows() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            signal.raise_signal(signal.SIGUSR1)
            assert inner.asked == "SIGUSR1"
        assert outer.asked == "SIGUSR1"


def test_what_the_outer_was_asked_before_an_inner_one_knows() -> None:
    with StopRequest():
        signal.raise_signal(signal.SIGTERM)
        with StopRequest() as inner:
            assert inner.asked == "SIGTERM"


def test_afterwards_a_new_request_is_not_asked_and_signals_are_as_before() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    with stop:
        assert stop.asked is None
