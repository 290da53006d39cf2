"""Heartbeats of a training group: a lost rank is noticed within a minute, and one rank reports why."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch.distributed.distributed_c10d import Store

from uumamba.runtime.errors import EXIT_FAILED, EndedWithAnother, UumambaError

BEAT_S = 2.0
"""Time between two heartbeats."""

SILENCE_S = 40.0
"""A rank without a heartbeat for so long counts as lost; a save that holds Python's lock must take less."""

GRACE_S = 10.0
"""Time for a rank to end by itself before it is ended."""

LEAVE_WITHIN_S = BEAT_S + GRACE_S + 3.0
"""Time that rank 0 gives the others to leave: their watch reads the reason in it, and ends them."""

REASON_S = 2.0
"""Time that a rank without connection waits for another rank's reason, which is written before that process ends."""


class RankLostError(UumambaError):
    """A process of the group that disappeared without a reason."""


class RankWatch:
    """Heartbeats and one reason for the end, in a store that every rank can reach.

    Each rank increments its own number every two seconds and watches that of the next rank. This thread goes on
    whatever blocks the main thread, for example a collective that waits for a dead machine, and ends the process if the
    group has ended and the main thread has not.

    Args:
        store: for this thread and the main thread only; waiting for a key blocks all other users of a store.
        rank: of this process.
        count: processes in the group.
        silence_s: a rank without a heartbeat for so long is lost.
        grace_s: time for this rank to end by itself, once the group has ended.
        end: ends the process with an exit code, from the thread.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        count: int,
        silence_s: float = SILENCE_S,
        grace_s: float = GRACE_S,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._store = store
        self._rank = rank
        self._watched = (rank + 1) % count
        self._silence_s = silence_s
        self._grace_s = grace_s
        self._end = end
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rank watch", daemon=True)

    def start(self) -> None:
        """Send heartbeats from now on, and watch the other rank's."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching: the group's work is over for this rank."""
        self._stopped.set()
        self._thread.join(timeout=GRACE_S)

    def end_group(self, message: str, *, exit_code: int) -> EndedWithAnother | None:
        """End the group; return None on the first rank to do so, which reports it, else the first rank's error."""
        own: dict[str, Any] = {"rank": self._rank, "exit_code": exit_code, "message": message}
        try:
            if self._store.add("ended", 1) == 1:
                self._store.set("reason", json.dumps(own))
                return None
            return self.end_reason(wait_s=REASON_S) or _make_error(**own)
        except RuntimeError:  # the store died with the process that kept it, so nobody else can report
            return None

    def end_reason(self, *, wait_s: float = 0.0) -> EndedWithAnother | None:
        """Return the error that ended the group, the same on all ranks, if there is one within ``wait_s``."""
        deadline = time.monotonic() + wait_s
        with suppress(RuntimeError):
            while not self._store.check(["reason"]):
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.05)
            return _make_error(**json.loads(self._store.get("reason")))
        return None

    def _run(self) -> None:
        error, is_reported = self._wait_for_end()
        # Usually the main thread has noticed too, and ends with an error of its own.
        if error is None or self._stopped.wait(self._grace_s):
            return
        if not is_reported:
            _report(error)
        _count_as_left(self._store)
        self._end(error.exit_code)

    def _wait_for_end(self) -> tuple[UumambaError | None, bool]:
        """Return the error that ended the group, and True if a rank reports it; None when this rank has left."""
        last, heard, beats = b"", time.monotonic(), 0
        while not self._stopped.wait(min(BEAT_S, self._silence_s / 4)):
            beats += 1
            try:
                error, now = self.end_reason(), self._exchange_beats(beats)
            except RuntimeError:
                return RankLostError("the process that kept the group together is gone"), False
            if error is not None:
                return error, True
            if now != last:
                last, heard = now, time.monotonic()
            if time.monotonic() - heard > self._silence_s:
                lost = RankLostError(f"no heartbeat of process {self._watched} in {self._silence_s:.0f} s")
                error = self.end_group(str(lost), exit_code=EXIT_FAILED)
                if error is None:
                    _report(lost)
                return error or lost, True
        return None, False

    def _exchange_beats(self, beats: int) -> bytes:
        """Write the own heartbeat and return the watched rank's; empty before its first."""
        self._store.set(f"alive/{self._rank}", str(beats))
        key = f"alive/{self._watched}"
        return self._store.get(key) if self._store.check([key]) else b""


def leave_after_others(store: Store, *, rank: int, count: int) -> None:
    """Leave a group that has ended; rank 0, which may keep the store, waits until the others have left.

    Without the store they could not read the reason, and would end as if they had been killed.
    """
    if rank > 0:
        _count_as_left(store)
        return
    deadline = time.monotonic() + LEAVE_WITHIN_S
    with suppress(RuntimeError):  # another process kept the store
        while store.add("left", 0) < count - 1 and time.monotonic() < deadline:
            time.sleep(0.05)


def _count_as_left(store: Store) -> None:
    with suppress(RuntimeError):  # no rank is left to wait
        store.add("left", 1)


def _make_error(*, rank: int, exit_code: int, message: str) -> EndedWithAnother:
    return EndedWithAnother(f"Process {rank} ended: {message}", exit_code=exit_code)


def _report(error: UumambaError) -> None:
    print(f"uumamba: Stopped, {error}; go on with --resume.", file=sys.stderr, flush=True)
