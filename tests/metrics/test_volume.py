import numpy as np
import pytest

from uumamba.metrics import volume_ml


def test_the_volume_is_the_number_of_voxels_times_the_voxel_volume() -> None:
    mask = np.zeros((10, 10, 4), bool)
    mask[:5, :4, 1:3] = True
    # 5 x 4 x 2 = 40 voxels of 1.5 x 1.5 x 10 = 22.5 cubic millimetres.
    assert volume_ml(mask, spacing_mm=(1.5, 1.5, 10.0)) == pytest.approx(0.9, rel=1e-12)


def test_the_volume_of_an_empty_mask_is_zero() -> None:
    assert volume_ml(np.zeros((3, 3, 3), bool), spacing_mm=(1, 1, 1)) == 0.0
