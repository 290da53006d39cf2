"""Statistics of Hounsfield units over a data set's structures.

A sample of each case is stored on disk.
"""

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.case import Case
from uumamba.data.channels import ONE_CHANNEL
from uumamba.data.locations import draw_in_planes, find_foreground
from uumamba.data.normalise import find_shift, to_hounsfield
from uumamba.data.recipe import CtStatistics
from uumamba.data.scan import read_case
from uumamba.data.source_key import hash_case, list_values
from uumamba.runtime.errors import require
from uumamba.runtime.files import whole_file
from uumamba.runtime.seeds import generator_for
from uumamba.types import LabelMap

VOXELS_PER_CASE = 20_000
SAMPLE_VERSION = 1  # increased whenever an equal case would give another sample


def store_foreground(
    case: Case,
    *,
    folder: Path,
    structures: Mapping[str, int],
    channels: Sequence[str] = ONE_CHANNEL,
    sampled: Sequence[int] = (0,),
    ignore_value: int | None = None,
) -> None:
    """Store a sample of a case's foreground in ``folder``.

    An existing sample of the same files, structures and channels is reused.

    Args:
        case: the case.
        folder: gets ``<case_id>.npz``.
        structures: label value of each structure.
        channels: names of the channels.
        sampled: numbers of the channels with CT.
        ignore_value: label value of voxels that are left out.

    Raises:
        CaseError: the case cannot be read, or has no label.
    """
    path = folder / f"{case.case_id}.npz"
    settings: dict[str, Any] = {"sample": SAMPLE_VERSION, **list_values(structures, ignore_value)}
    if len(channels) > 1:
        settings["channels"] = list(sampled)
    key = hash_case(case, settings)
    if _read_sample(path)[0] == key:
        return
    image, label = read_case(case, structures=structures, channels=channels, ignore_value=ignore_value)
    sample = partial(sample_foreground, label=label.array, case_id=case.case_id, ignore_value=ignore_value)
    of_ct = [image.array[index] for index in sampled] if len(channels) > 1 else []
    values = np.stack([sample(each) for each in of_ct]) if of_ct else sample(image.array)
    with whole_file(path) as unfinished, unfinished.open("wb") as file:
        np.savez(file, key=np.array(key), values=values)


def compute_statistics(
    case_ids: Iterable[str], *, folder: Path, clip_percentiles: tuple[float, float], row: int = 0
) -> CtStatistics:
    """Compute percentiles, mean and standard deviation over stored samples.

    Each case contributes its sample, so that a large structure in one scan does not outweigh the others. Mean and
    standard deviation are computed before clipping.

    Args:
        case_ids: cases with a stored sample.
        folder: folder of the samples.
        clip_percentiles: lower and upper percentile, from 0 to 100, of the limits for clipping.
        row: position of the channel among the sampled ones.

    Raises:
        UsageError: no voxel is labelled, or both percentiles have the same value.
    """
    samples = (np.atleast_2d(_read_sample(folder / f"{case_id}.npz")[1]) for case_id in sorted(case_ids))
    values = np.concatenate([np.empty(0, dtype=np.float32), *[sample[row] for sample in samples]])
    low, high = np.percentile(values, clip_percentiles) if len(values) else (0.0, 0.0)
    require(
        low < high,
        "ct_statistics",
        got=f"{low:g} HU at both percentiles {clip_percentiles}" if len(values) else "0 labelled voxels",
        expected="labelled voxels with different values",
        fix="correct the labels of the data set, or set preprocess.ct_statistics",
    )
    return CtStatistics(*map(float, (low, high, values.mean(dtype=np.float64), values.std(dtype=np.float64))))


def sample_foreground(
    scan: NDArray[Any], label: LabelMap, *, case_id: str, ignore_value: int | None = None
) -> NDArray[np.float32]:
    """Draw at most 20 000 labelled voxels in Hounsfield units.

    The same case always gives the same sample.

    Args:
        scan: stored values on the native grid, read plane by plane of the last axis.
        label: label on the same grid.
        case_id: key of the draw.
        ignore_value: label value of ignored voxels; None if there are none.
    """
    shift = find_shift(scan, case_id=case_id)
    counts = [int(np.count_nonzero(find_foreground(plane, ignore_value))) for plane in label.T]
    values = [
        scan.T[plane][find_foreground(label.T[plane], ignore_value)][within]
        for plane, within in draw_in_planes(counts, VOXELS_PER_CASE, generator_for(case_id, "foreground"))
    ]
    return to_hounsfield(np.concatenate([np.empty(0, dtype=scan.dtype), *values]), shift)


def _read_sample(path: Path) -> tuple[str, NDArray[np.float32]]:
    """Read key and values of a stored sample.

    The key is empty if the file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return str(stored["key"]), stored["values"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return "", np.empty(0, dtype=np.float32)
