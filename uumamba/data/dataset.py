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
from uumamba.data.open_cases import OpenCases
from uumamba.data.patch import choose_start, read_window
from uumamba.data.prepared import PreparedCase, PreparedFolder
from uumamba.data.sampling import Sampling, holders_of
from uumamba.data.worker_watch import tell_reading
from uumamba.runtime.errors import CaseError, UsageError
from uumamba.runtime.seeds import generator_for, key_to_seed

__all__ = ["PatchDataset", "batches"]

Sample = dict[str, Any]
Key = tuple[int, int]
"""``(epoch, index)``; the index runs over all samples of the epoch, batch by batch."""

TRIES = 10
"""How often a patch is drawn in the search for one that is not air."""


class PatchDataset(Dataset[Sample]):
    """Random patches of prepared cases; the item ``(epoch, index)`` is the same whenever and wherever it is asked for.

    Every draw comes from a generator keyed by ``(seed, "patch", epoch, index)``, hence the same bytes for any number of
    workers and after a resume. Each sample takes a case at random; the last ``round(batch_size x foreground_fraction)``
    of each batch lie around a voxel of a foreground class of that case, each class being as likely as another (a case
    without foreground gives a random patch); ``sampling`` changes that. A 2-D patch is one slice. Only the window is
    read from the memory-mapped arrays. Outside the case the image continues with the smallest value in the window, the
    label with 0.

    Args:
        folder: the prepared folder.
        case_ids: the cases to draw from.
        patch_size: ``(Y, X)`` or ``(Z, Y, X)``.
        batch_size: samples a batch.
        batches_per_epoch: batches an epoch.
        foreground_fraction: share of each batch that is sure to see foreground.
        sampling: which samples those are and around which class they lie; see :class:`uumamba.data.sampling.Sampling`.
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
        sampling: Sampling | None = None,
        seed: int = 0,
        margin: float = 1.0,
    ) -> None:
        _check(case_ids, patch_size, batch_size, batches_per_epoch, foreground_fraction, margin)
        self.folder = folder
        self.case = OpenCases(folder)
        self.case_ids = tuple(case_ids)
        self.domains: Mapping[str, str] = {case_id: folder.manifest.by_id(case_id).domain for case_id in self.case_ids}
        self.patch_size = tuple(int(size) for size in patch_size)
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.foreground_fraction = foreground_fraction
        self.sampling = Sampling() if sampling is None else sampling
        self.holders: Mapping[int, tuple[str, ...]] = {}
        if self.sampling.classes == "of_data_set":
            self.holders = holders_of({case_id: folder.case(case_id).locations for case_id in self.case_ids})
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
        forced = self._is_forced(epoch, index)
        value = self.sampling.draw_class(list(self.holders), generator) if forced and self.holders else None
        case_ids = self.case_ids if value is None else self.holders[value]
        case_id = case_ids[int(torch.randint(len(case_ids), (), generator=generator))]
        tell_reading(case_id)
        try:
            case = self.case(case_id)
            centre = self._voxel_of(case, generator, value=value) if forced else None
            image, label = self._read(case, generator, centre=centre)
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

    def _is_forced(self, epoch: int, index: int) -> bool:
        if self.sampling.forced == "chance":
            drawn = torch.rand((), generator=generator_for(self.seed, "forced", epoch, index))
            return float(drawn) < self.foreground_fraction
        return index % self.batch_size >= self.batch_size - round(self.batch_size * self.foreground_fraction)

    def _voxel_of(self, case: PreparedCase, generator: Generator, *, value: int | None) -> tuple[int, ...] | None:
        """A voxel of a class, or of one that is drawn; None where the case has none."""
        if value is None:
            value = self.sampling.draw_class(np.unique(case.locations[:, 0]).tolist(), generator)
        return None if value is None else draw_voxel(case.locations, value, generator)

    def _read(
        self, case: PreparedCase, generator: Generator, *, centre: tuple[int, ...] | None
    ) -> tuple[Tensor, Tensor]:
        # A 2-D patch is a 3-D one that is one slice thick.
        flat = len(self.patch_size) == 2
        patch = (1, *self.patch_size) if flat else self.patch_size
        window = tuple(
            length if flat and axis == 0 else math.ceil(length * self.margin) for axis, length in enumerate(patch)
        )
        for _ in range(TRIES):
            start = choose_start(generator, size=patch, shape=case.label.shape, centre=centre)
            start = tuple(
                first - (wide - length) // 2 for first, wide, length in zip(start, window, patch, strict=True)
            )
            pixels = read_window(case.image, start, window)
            if centre is not None or self.sampling.has_content(pixels):
                break
        image = torch.from_numpy(pixels.astype(np.float32))
        label = torch.from_numpy(read_window(case.label, start, window, fill=0).astype(np.int64))[None]
        return (image[:, 0], label[:, 0]) if flat else (image, label)


def draw_voxel(locations: NDArray[np.int32], value: int, generator: Generator) -> tuple[int, ...]:
    """A voxel ``(z, y, x)`` of a class, from rows ``(class, z, y, x)`` that hold it.

    Example:
        >>> draw_voxel(np.array([[1, 0, 0, 0], [2, 7, 8, 9]], dtype=np.int32), 2, torch.Generator())
        (7, 8, 9)
    """
    rows = np.flatnonzero(locations[:, 0] == value)
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
