"""Random patches of prepared cases, each determined by its key."""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from uumamba.data.augmentation.parameters import draw_event
from uumamba.data.loader import Sample, batches
from uumamba.data.patch import choose_start, read_window
from uumamba.data.prepared import PreparedCase, PreparedFolder
from uumamba.data.sampling import FOREGROUND_FRACTION, MARGIN, Sampling, group_cases_by_class
from uumamba.data.worker_watch import report_reading
from uumamba.runtime.errors import CaseError, require
from uumamba.runtime.options import AT_LEAST_1, NonNegativeInt, PositiveInt, Probability, check_options
from uumamba.runtime.seeds import generator_for, key_to_seed
from uumamba.types import Batch

__all__ = ["OpenCases", "PatchDataset", "batches", "case_views"]

TRIES = 10  # draws of a patch until one has enough content
MOST_OPEN = 200  # cases; each holds two files open, of which a process may usually have 1024


class OpenCases:
    """Cache of the most recently used open cases of a folder.

    Opening a case costs more than reading a patch. A pickled cache is empty, because a mapped array would be copied.

    Args:
        folder: folder of prepared cases.
    """

    def __init__(self, folder: PreparedFolder) -> None:
        self.folder = folder
        self.open = lru_cache(MOST_OPEN)(folder.case)

    def __reduce__(self) -> tuple[Any, ...]:
        return OpenCases, (self.folder,)


class PatchDataset(Dataset[Sample]):
    """Random patches of prepared cases.

    The item ``(epoch, index)`` is the same in any order and any process. Every draw comes from a generator keyed by
    ``(seed, "patch", epoch, index)``, so the bytes are the same for any number of workers and after a resume. Each
    sample is from a random case. The last ``round(batch_size x foreground_fraction)`` samples of each batch are centred
    on a voxel of a foreground class of the case, each class with the same probability; a case without foreground gives
    a random patch. ``sampling`` changes this choice. In data sets with ignored voxels, a random patch is centred on an
    annotated voxel, each with the same probability, as in nnU-Net. A 2-D patch is one slice. Only the window is read
    from the memory-mapped arrays. Outside the case the image is filled with the smallest value in the window, the label
    with 0.

    Args:
        folder: the prepared folder.
        case_ids: cases to draw from.
        patch_size: ``(Y, X)`` or ``(Z, Y, X)``.
        batch_size: samples per batch.
        batches_per_epoch: batches per epoch.
        foreground_fraction: share of each batch that is centred on foreground.
        neighbour_slices: number of slices on either side of a 2-D patch that are further channels of its image, in
            order; the first and the last slice of a case are their own neighbours.
        sampling: choice of the samples on foreground and of their class; see
            :class:`uumamba.data.sampling.Sampling`.
        seed: seed of the run.
        margin: size of the window in multiples of the patch size (rounded up), so that a rotated patch has image at its
            corners; the augmentation crops the window to the patch.

    Raises:
        UsageError: there are no cases, a case is unknown, or a number is out of range.
    """

    @check_options
    def __init__(
        self,
        folder: PreparedFolder,
        case_ids: Sequence[str],
        *,
        patch_size: Sequence[int],
        batch_size: PositiveInt,
        batches_per_epoch: PositiveInt,
        foreground_fraction: Probability = FOREGROUND_FRACTION,
        sampling: Sampling | None = None,
        neighbour_slices: NonNegativeInt = 0,
        seed: int = 0,
        margin: Annotated[float, AT_LEAST_1] = MARGIN,
    ) -> None:
        require(
            case_ids,
            "case_ids",
            got="no cases",
            expected="at least one case",
            fix="prepare cases, or choose another fold",
        )
        require(
            len(patch_size) in (2, 3) and min(patch_size) >= 1,
            "patch_size",
            got=tuple(patch_size),
            expected="two or three positive integers",
        )
        self.cases = OpenCases(folder)
        self.case_ids = tuple(case_ids)
        self.domains: Mapping[str, str] = {case_id: folder.manifest.by_id(case_id).domain for case_id in self.case_ids}
        self.patch_size = tuple(int(size) for size in patch_size)
        self.batch_size = batch_size
        self.batches_per_epoch = batches_per_epoch
        self.foreground_fraction = foreground_fraction
        self.sampling = Sampling() if sampling is None else sampling
        self.cases_by_class: Mapping[int, tuple[str, ...]] = {}
        if self.sampling.classes == "of_data_set":
            self.cases_by_class = group_cases_by_class({name: folder.case(name).locations for name in self.case_ids})
        self.has_ignored = folder.manifest.ignore_value is not None
        self.seed = seed
        self.margin = margin
        self.neighbour_slices = neighbour_slices

    def __len__(self) -> int:
        return self.batch_size * self.batches_per_epoch

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Read the sample of ``(epoch, index)``.

        The index runs over all samples of the epoch, batch by batch.

        Returns:
            ``image`` ``(C, *window)`` float32, ``label`` ``(1, *window)`` int64, ``domain``, ``case_id``, and the
            ``seed`` of the augmentation.

        Raises:
            CaseError: the case cannot be read.
        """
        epoch, index = key
        generator = generator_for(self.seed, "patch", epoch, index)
        is_forced = self._is_forced(epoch, index)
        case_ids, value = self.case_ids, None
        if is_forced and self.cases_by_class:
            value = self.sampling.draw_class(list(self.cases_by_class), generator)
            case_ids = self.case_ids if value is None else self.cases_by_class[value]
        case_id = case_ids[int(torch.randint(len(case_ids), (), generator=generator))]
        report_reading(case_id)
        try:
            case = self.cases.open(case_id)
            centre = self._draw_centre(case, generator, value=value) if is_forced else None
            image, label = self._read_patch(case, generator, centre=centre)
        except CaseError:
            raise
        except Exception as error:  # any error of the files must name the case
            raise CaseError(
                case_id,
                "image",
                got=f"{type(error).__name__}: {error}",
                expected="complete arrays",
                fix="prepare the case again",
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
            return draw_event(generator_for(self.seed, "forced", epoch, index), self.foreground_fraction)
        return index % self.batch_size >= self.batch_size - round(self.batch_size * self.foreground_fraction)

    def _draw_centre(self, case: PreparedCase, generator: Generator, *, value: int | None) -> tuple[int, ...] | None:
        """Draw a voxel ``(z, y, x)`` of ``value`` or a drawn class.

        None if the case has no foreground.
        """
        if value is None:
            classes = np.unique(case.locations[:, 0])
            value = self.sampling.draw_class(classes[classes > 0].tolist(), generator)
        return None if value is None else _draw_location(case, value, generator)

    def _read_patch(
        self, case: PreparedCase, generator: Generator, *, centre: tuple[int, ...] | None
    ) -> tuple[Tensor, Tensor]:
        # A 2-D patch is a 3-D patch of one slice.
        is_flat = len(self.patch_size) == 2
        patch = (1, *self.patch_size) if is_flat else self.patch_size
        window = ((1,) if is_flat else ()) + tuple(math.ceil(length * self.margin) for length in self.patch_size)
        for _ in range(TRIES):
            around = _draw_annotated(case, generator) if centre is None and self.has_ignored else centre
            start = choose_start(generator, size=patch, shape=case.label.shape, centre=around)
            spare = ((wide - length) // 2 for wide, length in zip(window, patch, strict=True))
            start = tuple(first - before for first, before in zip(start, spare, strict=True))
            pixels = read_window(case.image, start, window)
            if centre is not None or self.sampling.has_content(pixels):
                break
        if self.neighbour_slices:
            last, reach = case.label.shape[0] - 1, range(-self.neighbour_slices, self.neighbour_slices + 1)
            slices = [min(max(start[0] + step, 0), last) for step in reach]
            windows = [read_window(case.image, (place, *start[1:]), window) for place in slices]
            pixels = np.stack(windows, axis=1).reshape(-1, *window)
        image = torch.from_numpy(pixels.astype(np.float32))
        label = torch.from_numpy(read_window(case.label, start, window, fill=0).astype(np.int64))[None]
        return (image[:, 0], label[:, 0]) if is_flat else (image, label)


def _draw_annotated(case: PreparedCase, generator: Generator) -> tuple[int, ...] | None:
    """Draw a voxel ``(z, y, x)`` that is not ignored.

    Each has about the same probability. None if all voxels are ignored.
    """
    classes = np.unique(case.locations[:, 0]).tolist()
    if not classes:
        return None
    voxels = torch.tensor([case.label_voxels[value] for value in classes], dtype=torch.float64)
    return _draw_location(case, classes[int(torch.multinomial(voxels, 1, generator=generator))], generator)


def _draw_location(case: PreparedCase, value: int, generator: Generator) -> tuple[int, ...]:
    """Draw one of the stored voxels ``(z, y, x)`` of a class."""
    rows = np.flatnonzero(case.locations[:, 0] == value)
    row = rows[int(torch.randint(len(rows), (), generator=generator))]
    return tuple(int(position) for position in case.locations[row, 1:])


def case_views(
    folder: PreparedFolder,
    case_ids: Sequence[str],
    *,
    patch_size: Sequence[int],
    views: int,
    neighbour_slices: int = 0,
    seed: int = 0,
) -> Iterator[Batch]:
    """Yield a few patches of each case, the same at every call.

    The patches are not augmented, and each is centred on a voxel of a foreground class; a case without foreground gives
    random patches. The patches are stacked along a new axis: ``image`` ``(1, C, views, *patch_size)`` and ``label``
    ``(1, 1, views, *patch_size)``.

    Args:
        folder: the prepared folder.
        case_ids: the cases, in order.
        patch_size: ``(Y, X)`` for one slice, or ``(Z, Y, X)``.
        views: patches per case.
        neighbour_slices: as for :class:`PatchDataset`.
        seed: key of the positions, together with the case's id.

    Raises:
        UsageError: a number is out of range, or a case is unknown.
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
            neighbour_slices=neighbour_slices,
            seed=key_to_seed(seed, "views", case_id),
        )
        samples = [dataset[0, index] for index in range(views)]
        stacked = {name: torch.stack([sample[name] for sample in samples], dim=1)[None] for name in ("image", "label")}
        yield {**stacked, "domain": [samples[0]["domain"]], "case_id": [case_id]}
