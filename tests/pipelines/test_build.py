"""Validation on complete cases, shared by several processes."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from tests.pipelines.run_files import MakeConfig
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.build import WholeCaseValidation
from uumamba.runtime.ranks import Alone


class ThreadRank(Alone):
    """Rank in a thread; ranks exchange values in memory."""

    def __init__(self, rank: int, table: list[Any], barrier: Barrier) -> None:
        self.rank, self.count, self.table, self.barrier = rank, len(table), table, barrier

    def gather(self, tree: Any) -> list[Any]:
        self.table[self.rank] = tree
        self.barrier.wait(timeout=60)
        return list(self.table)


@pytest.mark.parametrize("count", [2, 3])
def test_several_ranks_compute_the_dice_of_one_process_bit_for_bit(
    tiny_prepared: Path, tiny_config: MakeConfig, count: int
) -> None:
    folder, config = PreparedFolder(tiny_prepared), tiny_config()
    net = config.build_net(classes=4).eval()
    ids = [case.case_id for case in folder.manifest.select(split="training")[:4]]  # 3 ranks have unequal shares
    validation = partial(WholeCaseValidation, config, folder, ids, device="cpu")
    table, barrier = [None] * count, Barrier(count)
    with ThreadPoolExecutor(count) as threads:
        ranks = [ThreadRank(rank, table, barrier) for rank in range(count)]
        found = list(threads.map(lambda rank: validation(ranks=rank)(net), ranks))
    assert found == [validation()(net)] * count
    assert found[0]["dice"] > 0
