"""Batches of any number of workers, and reports of their errors."""

import multiprocessing
import os
import signal
from dataclasses import dataclass
from itertools import chain
from typing import Any

import pytest
import torch

from uumamba.data.loader import BatchShare, batches
from uumamba.data.worker_watch import report_reading
from uumamba.runtime.errors import CaseError, UumambaError
from uumamba.runtime.seeds import generator_for, key_to_seed


@dataclass(frozen=True)
class KeyedNoise:
    """Keyed noise that raises at one index, or kills its process."""

    batch_size: int = 4
    seed: int = 7
    length: int = 12
    fails_at: int | None = None
    dies_at: int | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        if key[1] == self.fails_at:
            raise CaseError("patient007_frame01", "image", got="9 bytes", expected="10", fix="prepare it again")
        report_reading(f"c{key[1]}")
        if key[1] == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        generator = generator_for(self.seed, *key)
        image = torch.randn(1, 20, 20, generator=generator)
        label = (image > 0).long()
        seed = key_to_seed(self.seed, "augment", *key)
        return {"image": image, "label": label, "domain": "d", "case_id": f"c{key[1]}", "seed": seed}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_stacked_in_order_without_a_draw_from_the_global_generator(workers: int) -> None:
    state = torch.get_rng_state()
    found = list(batches(KeyedNoise(), 5, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)
    assert [batch["case_id"] for batch in found] == [[f"c{first + i}" for i in range(4)] for first in (0, 4, 8)]
    assert found[0]["image"].shape == (4, 1, 20, 20)
    assert found[0]["seed"].dtype == torch.int64
    assert found[2]["seed"][1] == key_to_seed(7, "augment", 5, 9)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_case_error_reaches_the_caller_after_earlier_batches(workers: int, refused: Any) -> None:
    found = batches(KeyedNoise(fails_at=6), 0, workers=workers)
    assert next(found)["case_id"] == ["c0", "c1", "c2", "c3"]
    with refused("image", got="9 bytes", case_id="patient007_frame01") as caught:
        next(found)
    assert "in __getitem__" in caught.value.__notes__[0]


def test_a_killed_worker_is_reported_with_its_case() -> None:
    with pytest.raises(UumambaError, match=r"SIGKILL at case c6;"):
        list(batches(KeyedNoise(dies_at=6), 0, workers=2))


def test_a_worker_that_dies_during_a_step_is_reported_at_the_next_batch(request: pytest.FixtureRequest) -> None:
    # Torch's loader would raise from a signal handler within the step. Loaders of earlier tests may have set it.
    earlier, handler = signal.getsignal(signal.SIGCHLD), signal.SIG_DFL
    request.addfinalizer(lambda: signal.signal(signal.SIGCHLD, earlier))
    signal.signal(signal.SIGCHLD, handler)
    others = {*multiprocessing.active_children()}  # of earlier tests in this process
    found = batches(KeyedNoise(length=400), 0, workers=2)
    next(found), next(found)  # one batch of each worker, so that both have read a case
    assert signal.getsignal(signal.SIGCHLD) == handler
    worker = next(child for child in multiprocessing.active_children() if child not in others)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(60)  # in place of a step
    with pytest.raises(UumambaError, match=r"SIGKILL at case c\d+;"):
        next(found)
    unfinished = batches(KeyedNoise(length=400), 0, workers=2)  # the iteration may end early
    next(unfinished)
    unfinished.close()


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_shares_of_ranks_are_each_batch_once_with_equal_foreground(ranks: int) -> None:
    shares = [BatchShare(KeyedNoise(), rank=rank, ranks=ranks) for rank in range(ranks)]
    whole = [batch["case_id"] for batch in batches(KeyedNoise(), 5)]
    parts = [[batch["case_id"] for batch in batches(share, 5)] for share in shares]
    for batch, names in enumerate(whole):
        found = [part[batch] for part in parts]
        assert sorted(chain.from_iterable(found)) == sorted(names)
        forced = [len({*names[2:]} & {*part}) for part in found]  # samples on foreground are last
        assert max(forced) - min(forced) <= 1


def test_a_batch_that_cannot_be_shared_equally_is_refused(refused: Any) -> None:
    with refused("training.batch_size", got=4):
        BatchShare(KeyedNoise(), rank=0, ranks=3)
