"""Jobs of two ranks, one for each way to end a group.

test_rank_group.py runs them in a child process.
"""

import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import torch

from tests.forked_ranks import Job, run_groups
from uumamba.runtime import rank_group, rank_watch
from uumamba.runtime.errors import UsageError, UumambaError
from uumamba.runtime.rank_watch import RankWatch
from uumamba.runtime.ranks import Ranks
from uumamba.runtime.stop import StopRequest

TREE = {"weights": [torch.arange(3.0), torch.ones(2, 1, dtype=torch.bfloat16)], "empty": torch.ones(0), "epoch": 3}


def work(ranks: Ranks) -> None:
    """Call collectives, as training does, until the group ends."""
    while True:
        ranks.reduce_sum([1.0])
        time.sleep(0.02)


def succeed(folder: Path, ranks: Ranks) -> None:
    """Make every collective call once."""
    tree = TREE if ranks.is_rank_zero else None
    found = ranks.broadcast(tree)
    assert found["epoch"] == 3
    assert all(torch.equal(one, other) for one, other in zip(found["weights"], TREE["weights"], strict=True))
    assert len(found["empty"]) == 0
    assert ranks.gather(ranks.rank) == [0, 1]
    assert ranks.reduce_max(ranks.rank) == 1
    assert ranks.reduce_sum([1.0, 2.0**-40]) == [2.0, 2.0**-39], "in double precision"
    net = torch.nn.BatchNorm1d(1)
    net.running_mean.fill_(float(ranks.rank + 5))
    ranks.broadcast_buffers(net)
    assert net.running_mean == 5
    assert ranks.on_rank_zero(lambda: "done") == ("done" if ranks.is_rank_zero else None)
    print("all calls answered")


def fail(folder: Path, ranks: Ranks) -> None:
    """Raise an error in rank 1, as for bad data."""
    if ranks.rank == 1:
        raise UumambaError("patient007: its label holds 9; correct it.")
    work(ranks)


def fail_on_rank_zero(folder: Path, ranks: Ranks) -> None:
    def find_nothing() -> None:
        time.sleep(0.3)
        raise UsageError("--raw", got="an empty folder", expected="scans")

    ranks.on_rank_zero(find_nothing)


def disappear(folder: Path, ranks: Ranks, *, number: signal.Signals) -> None:
    """Kill or freeze rank 1."""
    if ranks.rank == 1:
        time.sleep(0.3)
        print(time.time(), flush=True)
        os.kill(os.getpid(), number)
    work(ranks)


def stop_after_training(folder: Path, ranks: Ranks) -> None:
    """Signal both ranks while only rank 0 still works, as in prediction.

    Rank 1, which waits for rank 0, gets the signal first.
    """
    threading.Timer(0.5 if ranks.rank else 1.0, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    if ranks.is_rank_zero:
        with StopRequest() as stop:
            while stop.signal_name is None:
                time.sleep(0.05)
            stop.raise_if_requested("in its work after training")


JOBS: dict[str, Job] = {
    "succeeds": succeed,
    "fails": fail,
    "fails on rank zero": fail_on_rank_zero,
    "killed": partial(disappear, number=signal.SIGKILL),
    "frozen": partial(disappear, number=signal.SIGSTOP),
    "stopped": stop_after_training,
}


if __name__ == "__main__":
    rank_watch.LEAVE_WITHIN_S = 4.0
    rank_group.RankWatch = partial(RankWatch, grace_s=1.0)  # type: ignore[misc,assignment]  # no test waits for ten
    run_groups(Path(sys.argv[1]), JOBS)
