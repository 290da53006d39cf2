"""Which values are Hounsfield units, which lie 1024 above them, and what lies below air."""

import warnings

import numpy as np
import pytest

from uumamba.data.hounsfield import find_shift, to_hounsfield
from uumamba.data.warn import ScanWarning
from uumamba.runtime.errors import CaseError


@pytest.fixture
def scan() -> np.ndarray:
    """Air, lung, fat, soft tissue and bone."""
    generator = np.random.default_rng(0)
    means = np.repeat([-1000, -850, -100, 40, 60, 700], 2000)
    return np.maximum(generator.normal(means, 15), -1024).round().astype(np.int16).reshape(20, 20, 30)


def quietly(scan: np.ndarray) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return find_shift(scan, case_id="c7")


def test_hounsfield_units_are_left_alone(scan: np.ndarray) -> None:
    assert quietly(scan) == 0


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "int32"])
def test_values_1024_too_high_are_shifted_back_with_a_warning(scan: np.ndarray, dtype: str) -> None:
    stored = (scan + 1024).astype(dtype)
    with pytest.warns(ScanWarning, match="c7: its values lie 1024 above Hounsfield units .* 1024 is subtracted"):
        shift = find_shift(stored, case_id="c7")
    assert np.array_equal(to_hounsfield(stored, shift), scan)


def test_a_crop_of_tissue_without_air_or_fat_is_not_taken_for_shifted(scan: np.ndarray) -> None:
    assert quietly(np.random.default_rng(0).normal(60, 12, (9, 9, 9)).round().astype(np.int16)) == 0
    contrast_and_bone = np.concatenate([np.full(900, 350), np.full(60, 800), np.full(40, 1000)]).reshape(10, 10, 10)
    assert quietly(contrast_and_bone) == 0


def test_values_cut_off_at_0_are_not_taken_for_shifted(scan: np.ndarray) -> None:
    assert quietly(np.maximum(scan, 0)) == 0


@pytest.mark.parametrize("padding", [-3024, -2000, -32768])
def test_padding_below_air_is_named_and_becomes_air(scan: np.ndarray, padding: int) -> None:
    padded = scan.copy()
    padded[:8] = padding
    with pytest.warns(ScanWarning, match=f"c7: its padding of {padding} HU, below any air, is set to -1024"):
        shift = find_shift(padded, case_id="c7")
    found = to_hounsfield(padded, shift)
    assert (found[:8] == -1024).all()
    assert np.array_equal(found[8:], scan[8:])


def test_a_scan_of_one_value_is_refused() -> None:
    with pytest.raises(CaseError, match=r"c7: the image is constant \(7\); leave out the scan"):
        find_shift(np.full((3, 3, 3), 7, dtype=np.int16), case_id="c7")
