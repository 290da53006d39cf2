from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.losses import CrossEntropyLoss

Sample = Callable[..., tuple[Tensor, Tensor]]


def test_it_is_torchs(sample: Sample) -> None:
    logits, label = sample(2, 5, 6, 4)
    torch.testing.assert_close(CrossEntropyLoss()(logits, label), F.cross_entropy(logits, label[:, 0]))


def test_ignored_voxels_do_not_count(sample: Sample) -> None:
    logits, label = sample(2, 5, 6)
    label[..., 3:] = 255
    expected = F.cross_entropy(logits, label[:, 0], ignore_index=255)
    torch.testing.assert_close(CrossEntropyLoss(ignore_label=255)(logits, label), expected)


def test_a_class_may_be_the_ignored_one(sample: Sample) -> None:
    logits, label = sample(2, 5, 6)
    expected = F.cross_entropy(logits, label[:, 0], ignore_index=2)
    torch.testing.assert_close(CrossEntropyLoss(ignore_label=2)(logits, label), expected)
