"""DICOM series: sorted by position, refused if incomplete."""

import locale
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from uumamba.data.scan import read_image

WriteSeries = Callable[..., Path]


@pytest.fixture
def planes() -> SimpleITK.Image:
    """Four axial planes with the values 1, 2, 3 and 4."""
    image = SimpleITK.GetImageFromArray(np.tile(np.arange(1, 5, dtype=np.int16)[:, None, None], (1, 6, 7)))
    image.SetSpacing((2.0, 2.0, 5.0))
    return image


def test_a_series_is_sorted_by_position_and_the_locale_is_unchanged(
    planes: SimpleITK.Image, write_series: WriteSeries
) -> None:
    folder = write_series(planes, positions_mm=[12.0, 0.0, 6.0, 18.0])
    before = locale.setlocale(locale.LC_ALL, "C.UTF-8")
    scan = read_image(folder)
    assert locale.setlocale(locale.LC_ALL) == before
    assert scan.array[0, 0].tolist() == [2, 3, 1, 4]
    np.testing.assert_allclose(scan.spacing_mm, (2, 2, 6))
    np.testing.assert_allclose(scan.affine[:3, :3], np.diag([-2.0, -2.0, 6.0]))


@pytest.mark.parametrize(
    ("positions_mm", "got"),
    [
        ([0, 6, 18, 24], "distances of 6.00 to 12.00 mm between slices"),
        ([0, 6, 6, 12], "distances of 0.00 to 6.00 mm between slices"),
    ],
)
def test_a_series_with_a_missing_or_a_double_slice_is_refused(
    planes: SimpleITK.Image, write_series: WriteSeries, positions_mm: list[float], got: str, refused: Any
) -> None:
    with refused("spacing_mm", got=got, case_id="c7"):
        read_image(write_series(planes, positions_mm=positions_mm), case_id="c7")


def test_a_folder_with_two_series_is_refused(planes: SimpleITK.Image, write_series: WriteSeries, refused: Any) -> None:
    write_series(planes)
    with refused("file", got="a folder with 2 DICOM series", case_id="c7"):
        read_image(write_series(planes, uid="1.2.9"), case_id="c7")


def test_the_spacing_of_a_real_series_is_the_distance_of_its_slices(real_data: Path) -> None:
    folder = real_data / "totalsegmentator" / "example_ct_dicom"
    if not folder.is_dir():
        pytest.skip(f"real data: {folder} is absent")
    scan = read_image(folder)
    assert scan.array.shape == (512, 512, 20)
    assert scan.spacing_mm[2] == pytest.approx(2.0)
