"""Hounsfield units: detection and correction of shifts and padding."""

import warnings
from typing import Any

import numpy as np
import pytest

from uumamba.data.normalise import find_shift, to_hounsfield
from uumamba.data.warn import ScanWarning


@pytest.fixture
def scan() -> np.ndarray:
    generator = np.random.default_rng(0)
    means = np.repeat([-1000, -850, -100, 40, 60, 700], 2000)
    return np.maximum(generator.normal(means, 15), -1024).round().astype(np.int16).reshape(20, 20, 30)


def find_shift_without_warning(scan: np.ndarray) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return find_shift(scan, case_id="c7")


def test_hounsfield_units_and_clipped_or_dense_values_are_unchanged(scan: np.ndarray) -> None:
    assert find_shift_without_warning(scan) == find_shift_without_warning(np.maximum(scan, 0)) == 0
    tissue = np.random.default_rng(0).normal(60, 12, (9, 9, 9)).round().astype(np.int16)  # a crop without air or fat
    contrast_and_bone = np.concatenate([np.full(900, 350), np.full(60, 800), np.full(40, 1000)]).reshape(10, 10, 10)
    assert find_shift_without_warning(tissue) == find_shift_without_warning(contrast_and_bone) == 0


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "int32"])
def test_values_1024_too_high_are_shifted_with_a_warning(scan: np.ndarray, dtype: str) -> None:
    stored = (scan + 1024).astype(dtype)
    with pytest.warns(ScanWarning, match="^c7: .*1024"):
        shift = find_shift(stored, case_id="c7")
    assert np.array_equal(to_hounsfield(stored, shift), scan)


@pytest.mark.parametrize("padding", [-3024, -2000, -32768])
def test_padding_below_air_becomes_air_with_a_warning(scan: np.ndarray, padding: int) -> None:
    padded = scan.copy()
    padded[:8] = padding
    with pytest.warns(ScanWarning, match=f"^c7: .*{padding} HU"):
        shift = find_shift(padded, case_id="c7")
    found = to_hounsfield(padded, shift)
    assert (found[:8] == -1024).all()
    assert np.array_equal(found[8:], scan[8:])


def test_a_scan_of_one_value_is_refused(refused: Any) -> None:
    with refused("image", got=7.0, case_id="c7"):
        find_shift(np.full((3, 3, 3), 7, dtype=np.int16), case_id="c7")
