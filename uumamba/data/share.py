"""One process's share of every batch, where several train together."""

from uumamba.data.feeding import KeyedDataset, Sample
from uumamba.runtime.errors import UsageError


class BatchShare:
    """Every ``ranks``-th sample of each batch of a data set, from the ``rank``-th on; itself such a data set.

    The configuration's batch is the one that all ranks see together. A sample keeps the key that it has in it, so its
    patch and its augmentation are the same for every number of ranks; and as samples that are sure to see foreground
    stand together at a batch's end, each rank gets as many of them as another, or one less.

    Args:
        dataset: the whole.
        rank: of this process, from 0.
        ranks: how many processes share.

    Raises:
        UsageError: the batch cannot be cut into equal shares.

    Example:
        >>> class Keys:
        ...     batch_size, seed = 4, 0
        ...     def __len__(self):
        ...         return 8
        ...     def __getitem__(self, key):
        ...         return {"key": key}
        >>> share = BatchShare(Keys(), rank=1, ranks=2)
        >>> share.batch_size, [share[0, index]["key"][1] for index in range(len(share))]
        (2, [1, 3, 5, 7])
    """

    def __init__(self, dataset: KeyedDataset, *, rank: int, ranks: int) -> None:
        if dataset.batch_size % ranks:
            raise UsageError(
                f"A batch of {dataset.batch_size} samples cannot be shared equally by {ranks} processes; set "
                f"training.batch_size, which counts the samples of all of them, to a multiple of {ranks}, or start "
                "another number of processes."
            )
        self.dataset = dataset
        self.rank = rank
        self.ranks = ranks
        self.batch_size = dataset.batch_size // ranks
        self.seed = dataset.seed

    def __len__(self) -> int:
        return len(self.dataset) // self.ranks

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """The sample of ``(epoch, index)``, the index counted within the share."""
        epoch, index = key
        # Batches are multiples of the ranks, so counting on from batch to batch stays within this rank's samples.
        return self.dataset[epoch, index * self.ranks + self.rank]
