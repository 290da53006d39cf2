"""Statistics of Hounsfield units over a data set's structures.

A sample of each case is kept on disk.
"""

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.case import Case
from uumamba.data.locations import draw_in_planes
from uumamba.data.normalise import find_shift, to_hounsfield
from uumamba.data.prepared import hash_case
from uumamba.data.recipe import CtStatistics
from uumamba.data.scan import read_case
from uumamba.runtime.errors import require
from uumamba.runtime.files import whole_file
from uumamba.runtime.seeds import generator_for
from uumamba.types import LabelMap

VOXELS_PER_CASE = 20_000
SAMPLE_VERSION = 1
"""Raised whenever an equal case would give another sample."""


def keep_foreground(case: Case, *, folder: Path, structures: Mapping[str, int]) -> None:
    """Store a case's sample in ``folder``.

    A stored one of the same bytes and structures is kept.

    Raises:
        CaseError: the case cannot be read, or lacks its label.
    """
    path = folder / f"{case.case_id}.npz"
    key = hash_case(case, {"sample": SAMPLE_VERSION, "structures": dict(sorted(structures.items()))})
    if _stored(path)[0] == key:
        return
    image, label = read_case(case, structures=structures)
    values = sample_foreground(image.array, label.array, case_id=case.case_id)
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, key=np.array(key), values=values)


def statistics_of(case_ids: Iterable[str], *, folder: Path, clip_percentiles: tuple[float, float]) -> CtStatistics:
    """Compute percentiles, mean and standard deviation over stored samples.

    A case counts by its sample, so that a large structure in one scan does not outweigh the others. Mean and standard
    deviation are those of all values, not of the clipped ones.

    Args:
        case_ids: cases with a stored sample.
        folder: of the samples.
        clip_percentiles: lower and upper, from 0 to 100: the limits that scans will be clipped to.

    Raises:
        UsageError: no voxel is labelled, or both percentiles have the same value.
    """
    samples = (_stored(folder / f"{case_id}.npz")[1] for case_id in sorted(case_ids))
    values = np.concatenate([np.empty(0, dtype=np.float32), *samples])
    fix = "correct the labels of the data set, or set preprocess.ct_statistics"
    require(len(values), "ct_statistics", got="0 labelled voxels", expected="at least 1", fix=fix)
    low, high = np.percentile(values, clip_percentiles)
    require(
        low < high,
        "ct_statistics",
        got=f"{low:g} HU at both percentiles {clip_percentiles}",
        expected="two values",
        fix=fix,
    )
    mean, std = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    return CtStatistics(float(low), float(high), float(mean), float(std))


def sample_foreground(scan: NDArray[Any], label: LabelMap, *, case_id: str) -> NDArray[np.float32]:
    """Draw at most 20 000 labelled voxels in Hounsfield units.

    The same case always gives the same sample.

    Args:
        scan: native, as stored; read by planes of its last axis.
        label: on the same grid.
        case_id: key of the draw.
    """
    shift = find_shift(scan, case_id=case_id)
    counts = [int(np.count_nonzero(plane)) for plane in label.T]
    values = [
        scan.T[plane][label.T[plane] != 0][within]
        for plane, within in draw_in_planes(counts, VOXELS_PER_CASE, generator_for(case_id, "foreground"))
    ]
    return to_hounsfield(np.concatenate([np.empty(0, dtype=scan.dtype), *values]), shift)


def _stored(path: Path) -> tuple[str, NDArray[np.float32]]:
    """Key and values of a stored sample.

    The key is empty where the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return str(stored["key"]), stored["values"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return "", np.empty(0, dtype=np.float32)
