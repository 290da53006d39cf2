"""Heartbeats of a training group: a lost rank is noticed within a minute, and one rank reports why."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass

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


@dataclass(frozen=True)
class EndReason:
    """Reason why the group ended, as all ranks read it.

    Attributes:
        rank: of the process that ended first.
        exit_code: for all of them.
        message: of its error.
    """

    rank: int
    exit_code: int
    message: str

    def as_error(self) -> EndedWithAnother:
        """Return the error that ends the other ranks."""
        return EndedWithAnother(f"Process {self.rank} ended: {self.message}", exit_code=self.exit_code)


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

    def end_group(self, message: str, *, exit_code: int) -> EndReason | None:
        """End the group; return None on the first rank to do so, which reports it, else the first rank's reason."""
        own = EndReason(self._rank, exit_code, message)
        try:
            if self._store.add("ended", 1) == 1:
                self._store.set("reason", json.dumps(asdict(own)))
                return None
            return self.end_reason(wait_s=REASON_S) or own
        except RuntimeError:  # the store died with the process that kept it, so nobody else can report
            return None

    def end_reason(self, *, wait_s: float = 0.0) -> EndReason | None:
        """Return the reason for the end of the group if there is one within ``wait_s``."""
        deadline = time.monotonic() + wait_s
        with suppress(RuntimeError):
            while not self._store.check(["reason"]):
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.05)
            return EndReason(**json.loads(self._store.get("reason")))
        return None

    def _run(self) -> None:
        reason, is_reported = self._wait_for_end()
        # Usually the main thread has noticed too, and ends with an error of its own.
        if reason is None or self._stopped.wait(self._grace_s):
            return
        if not is_reported:
            _report(reason)
        _count_as_left(self._store)
        self._end(reason.exit_code)

    def _wait_for_end(self) -> tuple[EndReason | None, bool]:
        """Return why the group ended and whether a rank reports it; None when this rank has left."""
        last, heard, beats = b"", time.monotonic(), 0
        while not self._stopped.wait(min(BEAT_S, self._silence_s / 4)):
            beats += 1
            try:
                reason, now = self.end_reason(), self._exchange_beats(beats)
            except RuntimeError:
                return EndReason(self._rank, EXIT_FAILED, "the process that kept the group together is gone"), False
            if reason is not None:
                return reason, True
            if now != last:
                last, heard = now, time.monotonic()
            if time.monotonic() - heard > self._silence_s:
                message = f"no heartbeat of process {self._watched} in {self._silence_s:.0f} s"
                reason = self.end_group(message, exit_code=EXIT_FAILED)
                if reason is None:
                    reason = EndReason(self._rank, EXIT_FAILED, message)
                    _report(reason)
                return reason, True
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


def _report(reason: EndReason) -> None:
    print(f"uumamba: Stopped, {reason.message}; go on with --resume.", file=sys.stderr, flush=True)
