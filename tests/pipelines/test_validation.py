"""Validation on whole cases, shared by several processes."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from uumamba.config import RunConfig
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.build import build_net
from uumamba.pipelines.split import split_cases
from uumamba.pipelines.validation import WholeCaseValidation
from uumamba.runtime.ranks import ALONE, Alone


class OneOf(Alone):
    """A thread in place of a process: ranks that hand each other what they have in memory."""

    def __init__(self, rank: int, table: list[Any], barrier: Barrier) -> None:
        self.rank, self.count, self.table, self.barrier = rank, len(table), table, barrier

    def gather(self, tree: Any) -> list[Any]:
        self.table[self.rank] = tree
        self.barrier.wait(timeout=60)
        return list(self.table)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_ranks_find_the_dice_of_one_process_to_the_last_bit(
    tiny_prepared: Path, tiny_config: Callable[..., RunConfig], count: int
) -> None:
    folder, config = PreparedFolder(tiny_prepared), tiny_config()
    net = build_net(config, classes=4).eval()

    def validate(ranks: Any) -> dict[str, float]:
        return WholeCaseValidation(
            folder,
            split_cases(folder.manifest, "0")[1],
            structures=dict(folder.manifest.structures),
            patch_size=config.training.patch_size,
            overlap=0.5,
            windows_at_once=4,
            device="cpu",
            ranks=ranks,
        )(net)

    table, barrier = [None] * count, Barrier(count)
    with ThreadPoolExecutor(count) as threads:
        found = list(threads.map(validate, [OneOf(rank, table, barrier) for rank in range(count)]))
    assert len(split_cases(folder.manifest, "0")[1]) % count or count == 2, "shares of unequal length, too"
    assert found == [validate(ALONE)] * count
    assert found[0]["dice"] > 0
