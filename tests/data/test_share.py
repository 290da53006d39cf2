"""Each process's share of the batches."""

from typing import Any

import pytest

from uumamba.data.loader import BatchShare
from uumamba.runtime.errors import UsageError


class Keys:
    """A data set whose samples are their own keys."""

    batch_size, seed = 6, 3

    def __len__(self) -> int:
        return 12

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        return {"key": key}


def batches_of(share: BatchShare, epoch: int) -> list[set[int]]:
    keys = [share[epoch, index]["key"] for index in range(len(share))]
    assert {key[0] for key in keys} == {epoch}
    size = share.batch_size
    return [{key[1] for key in keys[first : first + size]} for first in range(0, len(keys), size)]


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_shares_together_are_each_batch_once_and_foreground_is_spread(ranks: int) -> None:
    shares = [batches_of(BatchShare(Keys(), rank=rank, ranks=ranks), epoch=5) for rank in range(ranks)]
    for batch in range(2):
        whole = set(range(6 * batch, 6 * batch + 6))
        parts = [share[batch] for share in shares]
        assert set().union(*parts) == whole
        assert sum(map(len, parts)) == 6
        forced = [len({index for index in part if index % 6 >= 3}) for part in parts]  # the last half of each batch
        assert max(forced) - min(forced) <= 1


def test_a_batch_that_cannot_be_shared_equally_is_refused() -> None:
    with pytest.raises(UsageError, match="A batch of 6 samples cannot be shared equally by 4 processes; set training"):
        BatchShare(Keys(), rank=0, ranks=4)
