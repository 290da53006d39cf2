"""Tests of stop requests, also nested."""

import signal

import pytest

from uumamba.runtime.errors import EXIT_STOPPED_RESUMABLE
from uumamba.runtime.ranks import Alone
from uumamba.runtime.stop import StoppedOnRequest, StopRequest


def test_a_request_is_raised_when_checked_and_the_signal_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        stop.raise_if_requested("before any signal")
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StoppedOnRequest, match=r"SIGTERM in the middle\.") as stopped:
            stop.raise_if_requested("in the middle")
    assert stopped.value.exit_code == EXIT_STOPPED_RESUMABLE
    assert signal.getsignal(signal.SIGTERM) == before
    with stop:
        assert stop.signal_name is None, "a request starts empty"


def test_nested_requests_share_their_signals() -> None:
    with StopRequest() as outer:
        with StopRequest() as inner:
            signal.raise_signal(signal.SIGUSR1)
        with StopRequest() as later:
            assert (inner.signal_name, outer.signal_name, later.signal_name) == ("SIGUSR1",) * 3


def test_a_signal_to_another_rank_stops_this_one() -> None:
    class Second(Alone):
        def reduce_max(self, number: int) -> int:
            return max(number, signal.SIGUSR1.value)

    stop = StopRequest()
    stop.sync(Alone())
    assert stop.signal_name is None
    stop.sync(Second())
    assert stop.signal_name == "SIGUSR1"
