"""A few fixed patches of each case: enough to measure a network on it, at less cost than the whole case."""

from collections.abc import Iterator, Sequence

import torch

from uumamba.data.dataset import PatchDataset
from uumamba.data.prepared import PreparedFolder
from uumamba.runtime.seeds import key_to_seed
from uumamba.types import Batch


def case_views(
    folder: PreparedFolder, case_ids: Sequence[str], *, patch_size: Sequence[int], views: int, seed: int = 0
) -> Iterator[Batch]:
    """Yield case by case the same patches at every call, not augmented, each around a voxel of a foreground class.

    The patches are stacked along an axis of their own: ``image`` ``(1, C, views, *patch_size)`` and ``label``
    ``(1, 1, views, *patch_size)``; a case without foreground shows random patches.

    Args:
        folder: the prepared folder.
        case_ids: the cases, in order.
        patch_size: ``(Y, X)``, which is one slice, or ``(Z, Y, X)``.
        views: patches a case.
        seed: key of their positions, with the case's id.

    Raises:
        UsageError: a number is out of range, or a case is not known.
        CaseError: a case cannot be read.
    """
    for case_id in case_ids:
        dataset = PatchDataset(
            folder,
            [case_id],
            patch_size=patch_size,
            batch_size=views,
            batches_per_epoch=1,
            foreground_fraction=1.0,
            seed=key_to_seed(seed, "views", case_id),
        )
        samples = [dataset[0, index] for index in range(views)]
        stacked = {name: torch.stack([sample[name] for sample in samples], dim=1)[None] for name in ("image", "label")}
        yield {**stacked, "domain": [samples[0]["domain"]], "case_id": [case_id]}
