"""Statistics of CT over labelled voxels."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from uumamba.data.case import Case
from uumamba.data.foreground import VOXELS_PER_CASE, compute_statistics, sample_foreground, store_foreground
from uumamba.data.preprocess import CtStatistics, PreprocessRecipe

USUAL = PreprocessRecipe((None, None, None)).clip_percentiles


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    label = (generator.random((40, 42, 38), dtype=np.float32) < 0.6).astype(np.uint8)
    scan = generator.normal(np.where(label, 300, -800), 50).round().astype(np.int16)
    return scan, label


@pytest.fixture
def statistics(tmp_path: Path) -> Callable[..., CtStatistics]:
    """``statistics(*samples, percentiles=...)`` of stored samples."""

    def find(*samples: Any, percentiles: tuple[float, float] = USUAL) -> CtStatistics:
        for number, values in enumerate(samples):
            np.savez(tmp_path / f"{number}.npz", key=np.array("k"), values=np.asarray(values, dtype=np.float32))
        return compute_statistics(map(str, range(len(samples))), folder=tmp_path, clip_percentiles=percentiles)

    return find


def test_a_sample_is_of_labelled_voxels_and_depends_on_the_case(pair: tuple[np.ndarray, np.ndarray]) -> None:
    sample = sample_foreground(*pair, case_id="a")
    assert sample.dtype == np.float32
    assert len(sample) == VOXELS_PER_CASE < np.count_nonzero(pair[1])
    assert sample.min() > 0
    assert np.array_equal(sample, sample_foreground(*map(np.asfortranarray, pair), case_id="a"))
    assert not np.array_equal(sample, sample_foreground(*pair, case_id="b"))


def test_a_small_foreground_is_sampled_completely(pair: tuple[np.ndarray, np.ndarray]) -> None:
    scan, label = pair[0], np.zeros_like(pair[1])
    assert len(sample_foreground(scan, label, case_id="a")) == 0
    label[3, 4, 5], label[7, 8, 9] = 1, 2
    assert sorted(sample_foreground(scan, label, case_id="a")) == sorted([scan[3, 4, 5], scan[7, 8, 9]])


def test_statistics_are_those_of_all_samples_together(
    statistics: Callable[..., CtStatistics],
) -> None:
    samples = np.arange(0, 150), np.arange(150, 201)
    found = statistics(*samples)
    # Of 0, 1, ..., 200: percentiles 200 x 0.005 and 200 x 0.995, mean 100, variance (201^2 - 1) / 12.
    assert (found.low_hu, found.high_hu, found.mean_hu) == pytest.approx((1, 199, 100))
    assert found.std_hu == pytest.approx(np.sqrt((201**2 - 1) / 12))
    narrow = statistics(*samples, percentiles=(10, 75))
    assert (narrow.low_hu, narrow.high_hu) == pytest.approx((20, 150))
    assert (narrow.mean_hu, narrow.std_hu) == (found.mean_hu, found.std_hu)


@pytest.mark.parametrize("samples", [[], [np.full(9, 5)], [np.full(999, 5), np.full(1, 6)]])
def test_samples_without_two_different_percentiles_are_refused(
    statistics: Callable[..., CtStatistics], samples: list[np.ndarray], refused: Any
) -> None:
    with refused("ct_statistics", got="5 HU at both percentiles (0.5, 99.5)" if samples else "0 labelled voxels"):
        statistics(*samples)


def test_a_stored_sample_is_reused_until_files_or_structures_change(
    tmp_path: Path, pair: tuple[np.ndarray, np.ndarray], refused: Any
) -> None:
    paths = tmp_path / "a.nii", tmp_path / "a_gt.nii"
    for path, array in zip(paths, pair, strict=True):
        nib.save(nib.Nifti1Image(array, np.diag([1, 1, 2, 1])), path)
    case, folder, stored = Case("a", "a", "here", *paths), tmp_path / "foreground", tmp_path / "foreground" / "a.npz"

    def keep(**more: int) -> CtStatistics:
        store_foreground(case, folder=folder, structures={"aorta": 1} | more)
        return compute_statistics(["a"], folder=folder, clip_percentiles=USUAL)

    first, written = keep(), stored.stat().st_mtime_ns
    every = pair[0][pair[1] != 0]
    # Of 20 000 values of deviation 50 the mean has a standard error of 0.35, a percentile at 0.5 one of 1.7.
    assert first.mean_hu == pytest.approx(every.mean(), abs=1.5)
    assert first.low_hu == pytest.approx(np.percentile(every, USUAL[0]), abs=7)
    keep()
    assert stored.stat().st_mtime_ns == written
    keep(left=2)
    assert stored.stat().st_mtime_ns != written
    stored.write_bytes(b"cut")
    assert keep() == first
    nib.save(nib.Nifti1Image(pair[0] + np.int16(10), np.diag([1, 1, 2, 1])), paths[0])
    assert keep().mean_hu == pytest.approx(first.mean_hu + 10)
    with refused("label", got=None, case_id="b"):
        store_foreground(Case("b", "b", "here", paths[0]), folder=folder, structures={"aorta": 1})
