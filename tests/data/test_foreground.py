"""Statistics of CT are those of the labelled voxels, the same whenever and wherever they are found."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from uumamba.data.case import Case
from uumamba.data.foreground import (
    VOXELS_PER_CASE,
    find_ct_statistics,
    keep_foreground,
    sample_foreground,
    statistics_of,
)
from uumamba.data.preprocess import PreprocessRecipe
from uumamba.runtime.errors import CaseError, UsageError

USUAL = PreprocessRecipe((None, None, None)).clip_percentiles


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    label = (generator.random((40, 42, 38), dtype=np.float32) < 0.6).astype(np.uint8)
    scan = generator.normal(np.where(label, 300, -800), 50).round().astype(np.int16)
    return scan, label


def test_a_sample_is_of_labelled_voxels_alone_and_depends_on_the_case(pair: tuple[np.ndarray, np.ndarray]) -> None:
    sample = sample_foreground(*pair, case_id="a")
    assert sample.dtype == np.float32
    assert len(sample) == VOXELS_PER_CASE < np.count_nonzero(pair[1])
    assert sample.min() > 0
    assert np.array_equal(sample, sample_foreground(*map(np.asfortranarray, pair), case_id="a"))
    assert not np.array_equal(sample, sample_foreground(*pair, case_id="b"))


def test_little_foreground_is_taken_whole_and_none_gives_none(pair: tuple[np.ndarray, np.ndarray]) -> None:
    scan, label = pair[0], np.zeros_like(pair[1])
    label[3, 4, 5], label[7, 8, 9] = 1, 2
    assert sorted(sample_foreground(scan, label, case_id="a")) == sorted([scan[3, 4, 5], scan[7, 8, 9]])
    assert len(sample_foreground(scan, np.zeros_like(label), case_id="a")) == 0


def test_statistics_are_percentiles_mean_and_deviation_of_all_samples_together() -> None:
    first, second = np.arange(0, 150, dtype=np.float32), np.arange(150, 201, dtype=np.float32)
    found = find_ct_statistics([first, second], clip_percentiles=USUAL)
    # Of 0, 1, ..., 200: percentiles 200 x 0.005 and 200 x 0.995, mean 100, variance (201^2 - 1) / 12.
    assert (found.low_hu, found.high_hu, found.mean_hu) == pytest.approx((1, 199, 100))
    assert found.std_hu == pytest.approx(np.sqrt((201**2 - 1) / 12))
    narrow = find_ct_statistics([first, second], clip_percentiles=(10, 75))
    assert (narrow.low_hu, narrow.high_hu) == pytest.approx((20, 150))
    assert (narrow.mean_hu, narrow.std_hu) == (found.mean_hu, found.std_hu)


def test_a_sample_is_near_the_statistics_of_every_labelled_voxel(pair: tuple[np.ndarray, np.ndarray]) -> None:
    found = find_ct_statistics([sample_foreground(*pair, case_id="a")], clip_percentiles=USUAL)
    every = find_ct_statistics([pair[0][pair[1] != 0].astype(np.float32)], clip_percentiles=USUAL)
    # Of 20 000 values of deviation 50 the mean has a standard error of 0.35, a percentile at 0.5 one of 1.7.
    assert found.mean_hu == pytest.approx(every.mean_hu, abs=1.5)
    assert found.low_hu == pytest.approx(every.low_hu, abs=7)


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        ([], "no voxel is labelled"),
        ([np.full(9, 5, np.float32)], "both the percentile 0.5 and the percentile 99.5 of its voxels are 5 HU"),
        ([np.full(999, 5, np.float32), np.full(1, 6, np.float32)], "both the percentile .* are 5 HU"),
    ],
)
def test_statistics_of_nothing_are_refused(samples: list[np.ndarray], found: str) -> None:
    with pytest.raises(UsageError, match=f"CT statistics cannot be found: {found}; .* or give ct_statistics"):
        find_ct_statistics(samples, clip_percentiles=USUAL)


def test_a_stored_sample_is_used_again_until_its_files_or_structures_change(
    tmp_path: Path, pair: tuple[np.ndarray, np.ndarray]
) -> None:
    paths = tmp_path / "a.nii.gz", tmp_path / "a_gt.nii.gz"
    for path, array in zip(paths, pair, strict=True):
        nib.save(nib.Nifti1Image(array, np.diag([1, 1, 2, 1])), path)
    case, folder = Case("a", "a", "here", *paths), tmp_path / "foreground"
    keep_foreground(case, folder=folder, structures={"aorta": 1})
    first, written = statistics_of(["a"], folder=folder, clip_percentiles=USUAL), (folder / "a.npz").stat().st_mtime_ns
    keep_foreground(case, folder=folder, structures={"aorta": 1})
    assert (folder / "a.npz").stat().st_mtime_ns == written
    keep_foreground(case, folder=folder, structures={"aorta": 1, "left": 2})
    assert (folder / "a.npz").stat().st_mtime_ns != written
    (folder / "a.npz").write_bytes(b"cut")
    keep_foreground(case, folder=folder, structures={"aorta": 1})
    assert statistics_of(["a"], folder=folder, clip_percentiles=USUAL) == first
    nib.save(nib.Nifti1Image(pair[0] + np.int16(10), np.diag([1, 1, 2, 1])), paths[0])
    keep_foreground(case, folder=folder, structures={"aorta": 1})
    assert statistics_of(["a"], folder=folder, clip_percentiles=USUAL).mean_hu == pytest.approx(first.mean_hu + 10)


def test_a_case_without_a_label_gives_no_sample(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(CaseError, match="a: it has no label"):
        keep_foreground(Case("a", "a", "here", tmp_path / "a.nii.gz"), folder=tmp_path, structures={"aorta": 1})
