"""Tests of the heartbeats of two ranks over a real store."""

import threading
import time
from collections.abc import Callable

import pytest
from torch.distributed import TCPStore

from uumamba.runtime.rank_watch import BEAT_S, GRACE_S, REASON_S, SILENCE_S, RankWatch


@pytest.fixture
def make_watch() -> Callable[..., RankWatch]:
    """Make the watch of one of two ranks: ``make_watch(rank, ended=[])``."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def make(rank: int, *, ended: list[int], silence_s: float = 0.4) -> RankWatch:
        store = TCPStore("127.0.0.1", server.port, is_master=False)
        watch = RankWatch(store, rank=rank, count=2, silence_s=silence_s, grace_s=0.2, end=ended.append)
        watch.server = server  # type: ignore[attr-defined]  # lives as long as its clients
        return watch

    return make


def is_ended_within(ended: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not ended and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(ended)


def test_a_rank_without_a_heartbeat_ends_the_other_and_is_named(
    make_watch: Callable[..., RankWatch], capfd: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    make_watch(0, ended=ended)
    assert is_ended_within(ended, 10)
    assert ended == [1]
    assert "no heartbeat of process 1" in capfd.readouterr().err


def test_the_first_rank_that_ends_a_live_group_gives_the_other_its_reason_and_exit_code(
    make_watch: Callable[..., RankWatch], capfd: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []
    first, second = make_watch(0, ended=ended, silence_s=1.5), make_watch(1, ended=[], silence_s=1.5)
    assert not is_ended_within(ended, 2.0), "both send heartbeats"
    assert second.end_group("the disk is full", exit_code=2) is None, "the first rank reports its own error"
    second.stop()
    reason = first.end_group("the connection is closed", exit_code=1)
    assert reason is not None
    assert (str(reason), reason.exit_code) == ("Process 1 ended: the disk is full", 2)
    assert is_ended_within(ended, 10)
    assert ended == [2], "the exit code of the rank that reported"
    assert not capfd.readouterr().err, "only one rank prints a message"


def test_a_rank_that_leaves_in_time_is_not_ended(make_watch: Callable[..., RankWatch]) -> None:
    ended: list[int] = []
    watch = make_watch(0, ended=ended)
    watch.end_group("something", exit_code=1)
    watch.stop()
    assert not is_ended_within(ended, 0.5)
    assert not any(thread.name == "rank watch" for thread in threading.enumerate())


def test_a_lost_rank_is_noticed_within_a_minute_by_default() -> None:
    assert SILENCE_S + GRACE_S + REASON_S + 2 * BEAT_S < 60
