import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.losses import ReleasedCodeLoss
from uumamba.losses.released_code import double_softmax_focal

Sample = Callable[..., tuple[Tensor, Tensor]]
S = 1e-5


def dice_by_one_hot(p: Tensor, y: Tensor, *, batch_dice: bool) -> Tensor:
    axes = (0, 2, 3) if batch_dice else (2, 3)
    p, y = p[:, 1:], y[:, 1:]
    return ((2 * (p * y).sum(axes) + S) / (p.sum(axes) + y.sum(axes) + S)).mean()


def focal_by_one_hot(p: Tensor, y: Tensor) -> Tensor:
    smooth_target = y.clamp(S / (y.shape[1] - 1), 1 - S)
    pt = (smooth_target * p.softmax(1)).sum(1) + S
    return (0.5 * (1 - pt) ** 2 * -pt.log()).mean()


@pytest.mark.parametrize("batch_dice", [False, True])
def test_loss_is_half_the_three_terms_plus_the_constant(sample: Sample, batch_dice: bool) -> None:
    logits, label = sample(3, 6, 7, dtype=torch.float64)
    p, y = logits.softmax(1), F.one_hot(label[:, 0], 4).movedim(-1, 1).double()
    # 0.5 / s**2 * L + ln(1 + s**2) with s = 1, which no optimizer changes
    terms = [
        -dice_by_one_hot(p, y, batch_dice=batch_dice),
        F.cross_entropy(logits, label[:, 0]),
        focal_by_one_hot(p, y),
    ]
    expected = sum(0.5 / 1**2 * term + math.log(1 + 1**2) for term in terms)
    value = ReleasedCodeLoss(batch_dice=batch_dice)(logits, label)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(
        torch.autograd.grad(value, logits, retain_graph=True)[0], torch.autograd.grad(expected, logits)[0]
    )


@pytest.mark.parametrize("classes", [2, 4, 24])
def test_focal_term_of_a_perfect_prediction_is_that_of_a_double_softmax(
    perfect: Callable[..., Tensor], classes: int
) -> None:
    label = torch.arange(classes).reshape(1, 1, 1, classes)
    largest = math.e / (math.e + classes - 1)
    smallest = 0.5 * (1 - largest) ** 2 * -math.log(largest)
    assert double_softmax_focal(perfect(label, classes=classes), label).item() == pytest.approx(smallest, rel=1e-3)


def test_a_perfect_prediction_has_the_smallest_loss(perfect: Callable[..., Tensor]) -> None:
    label = torch.tensor([0, 1, 2, 3]).reshape(1, 1, 2, 2)
    best = ReleasedCodeLoss()(perfect(label, classes=4), label)
    largest = math.e / (math.e + 3)
    smallest = 0.5 * (1 - largest) ** 2 * -math.log(largest)
    assert best.item() == pytest.approx(0.5 * (-1 + 0 + smallest) + 3 * math.log(2), rel=1e-3)
    assert ReleasedCodeLoss()(perfect(label.flip(-1), classes=4), label) > best


def test_loss_has_no_parameters() -> None:
    assert list(ReleasedCodeLoss().parameters()) == []
