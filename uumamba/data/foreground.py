"""What Hounsfield units a data set's structures have: a sample of each case, kept on disk, and statistics over all."""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.case import Case
from uumamba.data.draw import draw_ordinals, drawn_in_planes
from uumamba.data.hounsfield import CtStatistics, find_shift, to_hounsfield
from uumamba.data.prepared import hash_case
from uumamba.data.scan import read_case
from uumamba.runtime.errors import UsageError
from uumamba.runtime.files import whole_file
from uumamba.runtime.seeds import generator_for
from uumamba.types import LabelMap

VOXELS_PER_CASE = 20_000
SAMPLE_VERSION = 1
"""Raised whenever an equal case would give another sample."""


def keep_foreground(case: Case, *, folder: Path, structures: Mapping[str, int]) -> None:
    """Store a case's sample in ``folder``, unless the one that stands there is of the same bytes and structures.

    Raises:
        CaseError: the case cannot be read, or lacks its label.
    """
    path = _path(folder, case.case_id)
    key = hash_case(case, {"sample": SAMPLE_VERSION, "structures": dict(sorted(structures.items()))})
    if _stored(path)[0] == key:
        return
    image, label = read_case(case, structures=structures)
    values = sample_foreground(image.array, label.array, case_id=case.case_id)
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, key=np.array(key), values=values)


def statistics_of(case_ids: Iterable[str], *, folder: Path, clip_percentiles: tuple[float, float]) -> CtStatistics:
    """Statistics over the stored samples of some cases; see :func:`find_ct_statistics`."""
    samples = (_stored(_path(folder, case_id))[1] for case_id in sorted(case_ids))
    return find_ct_statistics(samples, clip_percentiles=clip_percentiles)


def sample_foreground(scan: NDArray[Any], label: LabelMap, *, case_id: str) -> NDArray[np.float32]:
    """Hounsfield units of at most 20 000 labelled voxels, the same for the same case.

    Args:
        scan: native, as stored; one plane of its last axis is looked at a time.
        label: on the same grid.
        case_id: what the draw depends on.
    """
    shift = find_shift(scan, case_id=case_id)
    counts = [int(np.count_nonzero(plane)) for plane in label.T]
    ordinals = draw_ordinals(sum(counts), VOXELS_PER_CASE, generator_for(case_id, "foreground"))
    planes = drawn_in_planes(counts, ordinals)
    values = [scan.T[plane][label.T[plane] != 0][within] for plane, within in planes]
    return to_hounsfield(np.concatenate([np.empty(0, dtype=scan.dtype), *values]), shift)


def find_ct_statistics(
    samples: Iterable[NDArray[np.float32]], *, clip_percentiles: tuple[float, float]
) -> CtStatistics:
    """Two percentiles, mean and standard deviation over samples of the cases' foreground.

    A case counts by its sample, so that a large structure in one scan does not outweigh the others. Mean and standard
    deviation are those of all values, not of the clipped ones.

    Args:
        samples: one a case.
        clip_percentiles: lower and upper, from 0 to 100: the limits that scans will be clipped to.

    Raises:
        UsageError: no voxel is labelled, or the two percentiles are one value.

    Example:
        >>> find_ct_statistics([np.array([0.0, 100.0], dtype=np.float32)], clip_percentiles=(0.5, 99.5)).mean_hu
        50.0
    """
    values = np.concatenate([np.empty(0, dtype=np.float32), *samples])
    if len(values) == 0:
        raise _not_found("no voxel is labelled")
    low, high = np.percentile(values, clip_percentiles)
    if low >= high:
        lower, upper = clip_percentiles
        raise _not_found(f"both the percentile {lower:g} and the percentile {upper:g} of its voxels are {low:g} HU")
    mean, std = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    return CtStatistics(float(low), float(high), float(mean), float(std))


def _not_found(found: str) -> UsageError:
    return UsageError(f"CT statistics cannot be found: {found}; correct the data set, or give ct_statistics.")


def _stored(path: Path) -> tuple[str, NDArray[np.float32]]:
    """Key and values; an empty key where the file is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return str(stored["key"]), stored["values"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return "", np.empty(0, dtype=np.float32)


def _path(folder: Path, case_id: str) -> Path:
    return folder / f"{case_id}.npz"
