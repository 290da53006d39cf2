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


def test_nothing_but_ignored_voxels_gives_zero_and_a_zero_gradient() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = CrossEntropyLoss(ignore_label=255)(logits, torch.full((1, 1, 4, 4), 255))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_a_perfect_prediction_costs_nothing(sample: Sample, perfect: Callable[..., Tensor]) -> None:
    _, label = sample(2, 5, 6)
    assert CrossEntropyLoss()(perfect(label, classes=4), label) == 0


def test_it_is_float32_inside_under_autocast(sample: Sample) -> None:
    logits, label = sample(2, 16, 16)
    low = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = CrossEntropyLoss()(low, label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(low.float(), label[:, 0]))
