"""The island of full precision."""

import pytest
import torch

from uumamba.nets.precision import full_precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_off_inside_and_on_again_after(dtype):
    matrix = torch.ones(2, 2)
    with torch.autocast("cpu", dtype):
        with full_precision(matrix.device):
            assert (matrix @ matrix).dtype == torch.float32
        assert (matrix @ matrix).dtype == dtype


def test_a_device_without_autocast_is_accepted():
    with full_precision(torch.device("meta")):
        assert torch.ones(1, device="meta").dtype == torch.float32
