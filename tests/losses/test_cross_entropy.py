from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.losses import CrossEntropyLoss


@pytest.mark.parametrize("ignore_label", [None, 255, 2], ids=["none", "extra label", "class"])
def test_value_equals_torchs_cross_entropy_with_and_without_ignored_voxels(
    sample: Callable[..., tuple[Tensor, Tensor]], ignore_label: int | None
) -> None:
    logits, label = sample(2, 5, 6, 4)
    if ignore_label == 255:
        label[..., 3:] = 255
    expected = F.cross_entropy(logits, label[:, 0], ignore_index=-100 if ignore_label is None else ignore_label)
    torch.testing.assert_close(CrossEntropyLoss(ignore_label=ignore_label)(logits, label), expected)
