"""Feeding: patches of prepared cases, each decided by its own key alone."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor
from torch.utils.data import Dataset

from uumamba.data.feeding import batches
from uumamba.data.patch import choose_start, read_window
from uumamba.data.prepared import PreparedCase, PreparedFolder
from uumamba.errors import CaseError, UsageError
from uumamba.seeding import generator_for, key_to_seed

__all__ = ["PatchDataset", "batches"]

Sample = dict[str, Any]
Key = tuple[int, int]
"""``(epoch, index)``; the index runs over all samples of the epoch, batch by batch."""


class PatchDataset(Dataset[Sample]):
    """Random patches of prepared cases; the item ``(epoch, index)`` is the same whenever and wherever it is asked for.

    Every draw comes from a generator keyed by ``(seed, "patch", epoch, index)``, hence the same bytes for any number of
    workers and after a resume. Each sample takes a case at random; the last ``round(batch_size x foreground_fraction)``
    of each batch lie around a voxel of a foreground class of that case, each class being as likely as another (a case
    without foreground gives a random patch). A 2-D patch is one slice. Only the window itself is read from the
    memory-mapped arrays. Outside the case the image continues with the smallest value in the window, the label with 0.

    Args:
        folder: the prepared folder.
        case_ids: the cases to draw from.
        patch_size: ``(Y, X)`` or ``(Z, Y, X)``.
        batch_size: samples a batch.
        batches_per_epoch: batches an epoch.
        foreground_fraction: share of each batch that is sure to see foreground.
        seed: the run's.
        margin: the window is this many times the patch (rounded up), so that a rotation finds image at its corners;
            the augmentation crops it to the patch.

    Raises:
        UsageError: there are no cases, an unknown one, or a number makes no sense.
    """

    def __init__(
        self,
        folder: PreparedFolder,
        case_ids: Sequence[str],
        *,
        patch_size: Sequence[int],
        batch_size: int,
        batches_per_epoch: int,
        foreground_fraction: float = 0.33,
        seed: int = 0,
        margin: float = 1.0,
    ) -> None:
        _check(case_ids, patch_size, batch_size, batches_per_epoch, foreground_fraction, margin)
        self.folder = folder
        self.case_ids = tuple(case_ids)
        self.domains: Mapping[str, str] = {case_id: folder.manifest.by_id(case_id).domain for case_id in self.case_ids}
        self.patch_size = tuple(int(size) for size in patch_size)
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.forced = round(batch_size * foreground_fraction)
        self.seed = seed
        self.margin = margin

    def __len__(self) -> int:
        return self.batch_size * self.batches_per_epoch

    def __getitem__(self, key: Key) -> Sample:
        """The sample of a key.

        Returns:
            ``image`` ``(C, *window)`` float32, ``label`` ``(1, *window)`` int64, ``domain``, ``case_id``, and the
            ``seed`` from which the augmentation draws.

        Raises:
            CaseError: the case cannot be read.
        """
        epoch, index = key
        generator = generator_for(self.seed, "patch", epoch, index)
        case_id = self.case_ids[int(torch.randint(len(self.case_ids), (), generator=generator))]
        try:
            image, label = self._read(self.folder.case(case_id), generator, forced=self._is_forced(index))
        except CaseError:
            raise
        except Exception as error:  # whatever it was, the case must be named
            raise CaseError(
                case_id, f"its prepared arrays cannot be read ({type(error).__name__}: {error})", "prepare it anew"
            ) from error
        return {
            "image": image,
            "label": label,
            "domain": self.domains[case_id],
            "case_id": case_id,
            "seed": key_to_seed(self.seed, "augment", epoch, index),
        }

    def _is_forced(self, index: int) -> bool:
        return index % self.batch_size >= self.batch_size - self.forced

    def _read(self, case: PreparedCase, generator: Generator, *, forced: bool) -> tuple[Tensor, Tensor]:
        # A 2-D patch is a 3-D one that is one slice thick.
        flat = len(self.patch_size) == 2
        patch = (1, *self.patch_size) if flat else self.patch_size
        centre = draw_foreground_voxel(case.locations, generator) if forced else None
        start = choose_start(generator, size=patch, shape=case.label.shape, centre=centre)
        window = tuple(
            length if flat and axis == 0 else math.ceil(length * self.margin) for axis, length in enumerate(patch)
        )
        start = tuple(first - (wide - length) // 2 for first, wide, length in zip(start, window, patch, strict=True))
        image = torch.from_numpy(read_window(case.image, start, window).astype(np.float32))
        label = torch.from_numpy(read_window(case.label, start, window, fill=0).astype(np.int64))[None]
        return (image[:, 0], label[:, 0]) if flat else (image, label)


def draw_foreground_voxel(locations: NDArray[np.int32], generator: Generator) -> tuple[int, ...] | None:
    """A voxel ``(z, y, x)`` of a class that is drawn first, so a small structure comes as often as a large one.

    None where there is no foreground.

    Example:
        >>> draw_foreground_voxel(np.array([[2, 7, 8, 9]], dtype=np.int32), torch.Generator())
        (7, 8, 9)
    """
    classes = np.unique(locations[:, 0])
    if len(classes) == 0:
        return None
    drawn = classes[int(torch.randint(len(classes), (), generator=generator))]
    rows = np.flatnonzero(locations[:, 0] == drawn)
    row = rows[int(torch.randint(len(rows), (), generator=generator))]
    return tuple(int(position) for position in locations[row, 1:])


def _check(
    case_ids: Sequence[str],
    patch_size: Sequence[int],
    batch_size: int,
    batches_per_epoch: int,
    foreground_fraction: float,
    margin: float,
) -> None:
    if not case_ids:
        raise UsageError("There are no cases to take patches from; prepare some, or choose another fold.")
    if len(patch_size) not in (2, 3) or min(patch_size) < 1:
        raise UsageError(f"A patch size is two or three positive numbers, got {tuple(patch_size)}; correct it.")
    if batch_size < 1 or batches_per_epoch < 1:
        raise UsageError(
            f"An epoch of {batches_per_epoch} batches of {batch_size} holds nothing; give both at least 1."
        )
    if not 0.0 <= foreground_fraction <= 1.0:
        raise UsageError(f"The foreground fraction {foreground_fraction} is not within 0 and 1; correct it.")
    if not margin >= 1.0:
        raise UsageError(f"The reading margin {margin} would cut the patch; give at least 1.")
