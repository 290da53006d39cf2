"""Batches: the same for every number of workers, and no error or death of a worker goes unseen."""

import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from uumamba.data.augment import Augment
from uumamba.data.loader import batches
from uumamba.data.worker_watch import ReadingBoard, tell_reading
from uumamba.runtime.errors import CaseError, UumambaError
from uumamba.runtime.seeds import generator_for, key_to_seed


@dataclass(frozen=True)
class KeyedNoise:
    """A data set of keyed noise; at one index it fails, or its process dies."""

    batch_size: int = 4
    seed: int = 7
    length: int = 12
    fails_at: int | None = None
    dies_at: int | None = None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        if key[1] == self.fails_at:
            raise CaseError("patient007_frame01", "its image is shorter than its header says", "prepare it anew")
        tell_reading(f"c{key[1]}")
        if key[1] == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        generator = generator_for(self.seed, *key)
        image = torch.randn(1, 20, 20, generator=generator)
        label = (image > 0).long()
        seed = key_to_seed(self.seed, "augment", *key)
        return {"image": image, "label": label, "domain": "d", "case_id": f"c{key[1]}", "seed": seed}


def test_batches_are_stacked_in_order() -> None:
    fed = list(batches(KeyedNoise(), 5))
    assert [batch["case_id"] for batch in fed] == [[f"c{first + i}" for i in range(4)] for first in (0, 4, 8)]
    assert fed[0]["image"].shape == (4, 1, 20, 20)
    assert fed[0]["seed"].dtype == torch.int64
    assert fed[2]["seed"][1] == key_to_seed(7, "augment", 5, 9)


def test_workers_change_no_byte_before_or_after_augmentation() -> None:
    augment = Augment(patch_size=(16, 16), mirror_axes=(0, 1), bias_field_probability=0.5)
    alone, shared = list(batches(KeyedNoise(), 1)), list(batches(KeyedNoise(), 1, workers=2))
    assert len(alone) == len(shared) == 3
    for one, other in zip(alone, shared, strict=True):
        assert one["case_id"] == other["case_id"]
        for left, right in ((one, other), (augment(one), augment(other))):
            assert all(torch.equal(left[key], right[key]) for key in ("image", "label", "seed"))


@pytest.mark.parametrize("workers", [0, 1])
def test_feeding_leaves_the_global_generator_alone(workers: int) -> None:
    state = torch.get_rng_state()
    list(batches(KeyedNoise(), 0, workers=workers))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_reaches_the_caller_whole_after_the_batches_before_it(workers: int) -> None:
    fed = batches(KeyedNoise(fails_at=6), 0, workers=workers)
    assert next(fed)["case_id"] == ["c0", "c1", "c2", "c3"]
    with pytest.raises(CaseError, match="patient007_frame01: its image is shorter than its header says") as caught:
        next(fed)
    assert "in __getitem__" in caught.value.__notes__[0]


def test_a_killed_worker_raises_within_seconds() -> None:
    begin = time.monotonic()
    with pytest.raises(UumambaError, match=r"was ended by SIGKILL at case c6; .*--set training.workers=0"):
        list(batches(KeyedNoise(dies_at=6), 0, workers=2))
    assert time.monotonic() - begin < 20


def test_a_worker_that_dies_while_a_step_runs_is_noticed_at_the_next_batch_and_not_inside_the_step() -> None:
    """Torch's loader raises from a signal handler, wherever the process is."""
    handler = signal.getsignal(signal.SIGCHLD)
    fed = batches(KeyedNoise(length=400), 0, workers=2)
    next(fed), next(fed)  # one of each worker, so that both have read a case
    assert signal.getsignal(signal.SIGCHLD) == handler
    worker = multiprocessing.active_children()[0]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    for _ in range(20):  # a step, which goes on
        time.sleep(0.01)
    with pytest.raises(UumambaError, match=r"was ended by SIGKILL at case c\d+"):
        next(fed)


def test_a_line_of_a_worker_is_cut_where_it_is_too_long_and_replaced_whole() -> None:
    board = ReadingBoard(2)
    board.write(0, "é" * 300)
    board.write(1, "a long name")
    board.write(1, "short")
    assert board.lines() == ["é" * 127 + "\N{REPLACEMENT CHARACTER}", "short"]


def test_an_epoch_can_be_left_early() -> None:
    fed = batches(KeyedNoise(length=400), 0, workers=2)
    next(fed)
    fed.close()
    assert len(list(batches(KeyedNoise(), 0, workers=2))) == 3
