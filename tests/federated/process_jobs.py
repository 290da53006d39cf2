"""Jobs of four processes: ends by errors, and equal rounds.

test_processes.py runs them in a child process, or all equal rounds by torchrun.
"""

import json
import os
import signal
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.federated.site_examples import (
    CLIENTS,
    METHODS,
    ROUNDS,
    SAM_SGD,
    Unchecked,
    make_client,
    make_example_client,
    make_net,
    objective,
)
from tests.forked_ranks import run_groups
from uumamba.federated import Client, DFedSAM, connect_site, exponential, join_as_client, ring
from uumamba.runtime import rank_group, rank_watch
from uumamba.runtime.errors import EndedWithAnother
from uumamba.runtime.process_end import end_process
from uumamba.runtime.rank_group import join_group
from uumamba.runtime.rank_watch import RankWatch
from uumamba.runtime.ranks import ALONE, Ranks

join = partial(join_as_client, silence_s=4.0)
METHOD = DFedSAM(objective, SAM_SGD, ring(CLIENTS))


def run_examples(folder: Path, ranks: Ranks) -> None:
    """Run every example's rounds; store this process's weights and records."""
    for example, method in METHODS.items():
        site = connect_site(make_net(), make_example_client(example, ranks.rank), method, ranks)
        with warnings.catch_warnings(record=True) as warned:
            records = [asdict(record) for record in site.run(ROUNDS)]
        path = folder / example / f"{ranks.rank}"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"weights": site.state.weights, "buffers": dict(site.state.buffers)}, path.with_suffix(".pt"))
        stored = {"records": records, "warned": [str(each.message) for each in warned]}
        path.with_suffix(".json").write_text(json.dumps(stored), encoding="utf-8")


def raise_in_a_site(folder: Path, _: Any) -> None:
    def make(index: int) -> Client:
        client = make_client(index)
        return client if index != 2 else Client.from_tensors("Utrecht", torch.randn(12, 6), torch.full((12,), 9))

    try:
        with join(make_net(), make, METHOD) as site:
            list(site.run(3))
    except EndedWithAnother as error:
        print(error)
        raise


def poison_a_directed_graph(folder: Path, _: Any) -> None:
    method = DFedSAM(objective, partial(Unchecked, base=SAM_SGD.keywords["base"]), exponential(CLIENTS))
    with join(make_net(), lambda index: make_client(index, is_poisoned=index == 1), method) as site:
        list(site.run(3))


def die_in_a_site(folder: Path, _: Any) -> None:
    with join(make_net(), make_client, METHOD) as site:
        for _ in site.run(10_000):
            if site.round == 3 and site.links.index == 3:
                print(time.time(), flush=True)
                os.kill(os.getpid(), signal.SIGKILL)


JOBS = {
    "raises": raise_in_a_site,
    "not finite": poison_a_directed_graph,
    "killed": die_in_a_site,
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        with join_group("cpu") as joined:
            run_examples(Path(sys.argv[1]), joined)
        end_process(0)
    # Rank 0 must outlast the grace time of a rank that still waits for its weights.
    rank_watch.LEAVE_WITHIN_S = 10.0
    rank_group.RankWatch = partial(RankWatch, grace_s=4.0)  # type: ignore[misc,assignment]
    run_groups(Path(sys.argv[1]), JOBS, count=CLIENTS, join=lambda: nullcontext(ALONE))  # type: ignore[arg-type]
