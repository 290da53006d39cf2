"""Tests of a process's rank and device."""

from typing import Any

import pytest
import torch

from uumamba.runtime.ranks import ALONE, Place


def test_a_single_process_is_rank_zero_of_one() -> None:
    net = torch.nn.Linear(1, 1)
    assert (ALONE.rank, ALONE.count, ALONE.is_rank_zero) == (0, 1, True)
    assert ALONE.wrap(net) is net
    results = ALONE.on_rank_zero(lambda: 5), ALONE.reduce_sum([1.0, 2.0]), ALONE.broadcast("tree")
    assert results == (5, [1.0, 2.0], "tree")


def test_torchruns_variables_give_a_process_its_rank_and_device(refused: Any) -> None:
    assert Place.from_environment({}) == Place.from_environment({"WORLD_SIZE": "4"}) == Place(0, 1, 0)
    place = Place.from_environment({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert place == Place(rank=5, count=8, local_rank=1)
    assert Place().device("cuda:3", found=4) == "cuda:3"
    assert place.device("cpu", found=0) == "cpu"
    assert place.device("cuda", found=2) == "cuda:1"
    with refused("LOCAL_RANK", got=1):
        place.device("cuda", found=1)
    with refused("--device", got="cuda:0"):
        place.device("cuda:0", found=2)


@pytest.mark.parametrize("found", [("2", "2", "0"), ("a", "2", ""), ("0", "2", "-1")])
def test_contradicting_variables_are_refused(found: tuple[str, ...], refused: Any) -> None:
    with refused("RANK, WORLD_SIZE, LOCAL_RANK", got=found):
        Place.from_environment(dict(zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), found, strict=True)))
