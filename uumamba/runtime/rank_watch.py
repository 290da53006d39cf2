"""A group whose processes notice within a minute that one of them is gone, and of which one alone says why."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from torch.distributed.distributed_c10d import Store

from uumamba.runtime.errors import EXIT_FAILED, EndedWithAnother, UumambaError

BEAT_S = 2.0
"""Between two signs of life."""

SILENCE_S = 40.0
"""Without one a rank counts as gone; a save that keeps Python's lock must not take as long."""

GRACE_S = 10.0
"""What a rank gets to end by itself before it is ended."""

LEAVE_WITHIN_S = BEAT_S + GRACE_S + 3.0
"""What the first rank gives the others to leave: until their watch reads the word, and ends them."""

WORD_S = 2.0
"""How long a rank that lost its connection waits for another one's word; that is written before the process ends."""


class RankLostError(UumambaError):
    """A process of the group is gone without a word."""


@dataclass(frozen=True)
class LastWord:
    """Why the group ended, as all ranks read it.

    Attributes:
        rank: of the process that ended first.
        exit_code: for all of them.
        message: what it said.
    """

    rank: int
    exit_code: int
    message: str

    def as_error(self) -> EndedWithAnother:
        """What the other ranks end by."""
        return EndedWithAnother(f"Process {self.rank} ended: {self.message}", exit_code=self.exit_code)


class RankWatch:
    """Signs of life and one last word, in a store that every rank can reach.

    Each rank counts up a number of its own every two seconds, and watches that of the next rank. Whatever blocks the
    main thread, a collective that waits for a dead machine for one, this thread goes on, and ends the process when the
    group has ended and it did not end by itself.

    Args:
        store: this thread's and the main thread's, but no backend's: one that waits for a key keeps others out.
        rank: of this process.
        count: of all.
        silence_s: after so long without a sign of life a rank is gone.
        grace_s: what this rank gets to end by itself, once the group has ended.
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
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rank watch", daemon=True)

    def begin(self) -> None:
        """Show signs of life from now on, and look for the other's."""
        self._thread.start()

    def leave(self) -> None:
        """The group's work is over for this rank."""
        self._left.set()
        self._thread.join(timeout=GRACE_S)

    def claim(self, message: str, *, exit_code: int) -> LastWord | None:
        """End the group: None where this rank was the first to do so and has to say why; else the first one's word."""
        try:
            if self._store.add("ended", 1) == 1:
                self._store.set("word", json.dumps(asdict(LastWord(self._rank, exit_code, message))))
                return None
            return self.word(wait_s=WORD_S) or LastWord(self._rank, exit_code, message)
        except RuntimeError:  # the store is gone with the process that kept it, so nobody else can hear
            return None

    def word(self, *, wait_s: float = 0.0) -> LastWord | None:
        """The last word, where there is one by then."""
        deadline = time.monotonic() + wait_s
        try:
            while not self._store.check(["word"]):
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.05)
            return LastWord(**json.loads(self._store.get("word")))
        except RuntimeError:
            return None

    def _run(self) -> None:
        word, said = self._listen()
        # Most often the main thread has noticed too, and ends in a better way.
        if word is None or self._left.wait(self._grace_s):
            return
        if not said:
            _say(word)
        _note_leaving(self._store)
        self._end(word.exit_code)

    def _listen(self) -> tuple[LastWord | None, bool]:
        """The word that ended the group and whether somebody says it; None when this rank has left."""
        sign, heard, beats = b"", time.monotonic(), 0
        while not self._left.wait(min(BEAT_S, self._silence_s / 4)):
            beats += 1
            try:
                word, now = self.word(), self._exchange_signs(beats)
            except RuntimeError:
                return LastWord(self._rank, EXIT_FAILED, "the process that kept the group together is gone"), False
            if word is not None:
                return word, True
            if now != sign:
                sign, heard = now, time.monotonic()
            if time.monotonic() - heard > self._silence_s:
                message = f"no sign of life of process {self._watched} in {self._silence_s:.0f} s"
                word = self.claim(message, exit_code=EXIT_FAILED)
                if word is None:
                    word = LastWord(self._rank, EXIT_FAILED, message)
                    _say(word)
                return word, True
        return None, False

    def _exchange_signs(self, beats: int) -> bytes:
        """Show one's own sign of life, and read the watched rank's; empty before its first."""
        self._store.set(f"alive/{self._rank}", str(beats))
        key = f"alive/{self._watched}"
        return self._store.get(key) if self._store.check([key]) else b""


def leave_after_others(store: Store, *, rank: int, count: int) -> None:
    """Leave a group that has ended; the first rank, whose process may keep the store, when all others have or should.

    Where it is gone before, they cannot read why, and would end as if it had been killed.
    """
    if rank > 0:
        _note_leaving(store)
        return
    deadline = time.monotonic() + LEAVE_WITHIN_S
    try:
        while store.add("left", 0) < count - 1 and time.monotonic() < deadline:
            time.sleep(0.05)
    except RuntimeError:  # somebody else kept it
        return


def _note_leaving(store: Store) -> None:
    try:
        store.add("left", 1)
    except RuntimeError:  # nobody is left who would wait
        return


def _say(word: LastWord) -> None:
    print(f"uumamba: Stopped, {word.message}; go on with --resume.", file=sys.stderr, flush=True)
