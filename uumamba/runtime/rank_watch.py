"""Heartbeats of a training group.

A lost rank is noticed within a minute, and one rank reports the reason.
"""

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
"""Time without a heartbeat after which a rank is lost; longer than any save that holds Python's lock."""

GRACE_S = 10.0
"""Time for a rank to end by itself before its process is ended."""

LEAVE_WITHIN_S = BEAT_S + GRACE_S + 3.0
"""Time that rank 0 waits for the others to leave; enough for their watch to read the reason and end them."""

REASON_S = 2.0
"""Time that a rank with a lost connection waits for another rank's reason."""


class RankLostError(UumambaError):
    """Process of the group that disappeared without a reason."""


class RankWatch:
    """Heartbeat thread of one rank, over a store that all ranks share.

    Each rank increments its own number every two seconds and watches the number of the next rank. The thread works
    whatever blocks the main thread, for example a collective that waits for a dead machine. It ends the process if the
    group has ended and the main thread has not.

    Args:
        store: a connection for this thread and the main thread only, since waiting for a key blocks its other users.
        rank: of this process.
        count: number of processes in the group.
        silence_s: time without a heartbeat after which a rank is lost.
        grace_s: time for this rank to end by itself, once the group has ended.
        end: function that ends the process with an exit code; called in the thread.
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
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, because this rank has finished the group's work."""
        self._stopped.set()
        self._thread.join(timeout=GRACE_S)

    def end_group(self, message: str, *, exit_code: int) -> EndedWithAnother | None:
        """End the group; return None on the first rank that does so.

        That rank reports the error. Every later rank gets the first rank's error.
        """
        own: dict[str, Any] = {"rank": self._rank, "exit_code": exit_code, "message": message}
        try:
            if self._store.add("ended", 1) == 1:
                self._store.set("reason", json.dumps(own))
                return None
            return self.read_end_error(wait_s=REASON_S) or _make_error(**own)
        except RuntimeError:  # the store ended with its process, so no other rank can report
            return None

    def read_end_error(self, *, wait_s: float = 0.0) -> EndedWithAnother | None:
        """Return the error that ended the group, the same on all ranks.

        None if the group has not ended within ``wait_s``.
        """
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
        # Usually the main thread has also noticed, and ends with its own error.
        if error is None or self._stopped.wait(self._grace_s):
            return
        if not is_reported:
            _report(error)
        _count_as_left(self._store)
        self._end(error.exit_code)

    def _wait_for_end(self) -> tuple[UumambaError | None, bool]:
        """Return the group's final error, and whether a rank reports it.

        The error is None when this rank has left the group.
        """
        last, heard, beats = b"", time.monotonic(), 0
        while not self._stopped.wait(min(BEAT_S, self._silence_s / 4)):
            beats += 1
            try:
                error, now = self.read_end_error(), self._exchange_beats(beats)
            except RuntimeError:
                return RankLostError("the process that keeps the group's store has ended"), False
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
        """Write this rank's heartbeat and return the watched rank's.

        The result is empty before that rank's first heartbeat.
        """
        self._store.set(f"alive/{self._rank}", str(beats))
        key = f"alive/{self._watched}"
        return self._store.get(key) if self._store.check([key]) else b""


def leave_after_others(store: Store, *, rank: int, count: int) -> None:
    """Leave a group that has ended; rank 0 leaves last.

    Rank 0 may keep the store. Without the store the others could not read the reason, and would end as if killed.
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
    print(f"uumamba: Stopped, {error}; continue with --resume.", file=sys.stderr, flush=True)
