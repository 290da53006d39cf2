import math
from collections.abc import Callable

import pytest
import torch
from monai.losses import FocalLoss as MonaiFocalLoss
from torch import Tensor

from uumamba.losses import FocalLoss

Sample = Callable[..., tuple[Tensor, Tensor]]


@pytest.mark.parametrize("classes", [2, 4, 24])
def test_loss_tends_to_zero_for_a_perfect_prediction_in_any_number_of_classes(
    perfect: Callable[..., Tensor], classes: int
) -> None:
    label = torch.arange(classes).reshape(1, 1, 1, classes)
    losses = [
        FocalLoss()(perfect(label, classes=classes, confidence=confidence), label).item() for confidence in (5, 10, 30)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-20


def test_one_voxel_by_hand() -> None:
    # probabilities 3/4 and 1/4 of two classes
    logits = torch.tensor([math.log(3), 0.0]).reshape(1, 2, 1)
    expected = (1 - 0.75) ** 2 * -math.log(0.75)
    label = torch.zeros(1, 1, 1, dtype=torch.long)
    assert FocalLoss(gamma=2)(logits, label).item() == pytest.approx(expected)
    assert FocalLoss(gamma=2, alpha=0.25)(logits, label).item() == pytest.approx(0.75 * expected)


@pytest.mark.parametrize("shape", [(2, 7), (3, 6, 5), (2, 4, 5, 6)])
@pytest.mark.parametrize("alpha", [None, 0.25, 0.5])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_value_and_gradient_equal_monais(
    sample: Sample, shape: tuple[int, ...], alpha: float | None, gamma: float
) -> None:
    logits, label = sample(*shape)
    monai = MonaiFocalLoss(gamma=gamma, alpha=alpha, to_onehot_y=True, use_softmax=True)
    # MONAI averages also over the 4 classes; only the class of the voxel is not 0.
    values = [FocalLoss(gamma=gamma, alpha=alpha)(logits, label), 4 * monai(logits, label)]
    gradients = [torch.autograd.grad(value, logits)[0] for value in values]
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_alpha_by_class_weighs_each_voxel_by_its_class(sample: Sample) -> None:
    logits, label = sample(2, 5, 6, dtype=torch.float64)
    alpha = torch.tensor([0.0, 0.5, 2.0, 0.5], dtype=torch.float64)
    p = logits.softmax(1).gather(1, label)
    expected = (alpha[label] * (1 - p) ** 2 * -p.log()).mean()
    torch.testing.assert_close(FocalLoss(alpha=alpha.tolist())(logits, label), expected)


def test_alpha_of_the_wrong_length_is_refused(sample: Sample, refused) -> None:
    with refused("alpha", got=[1.0, 1.0, 1.0]):
        FocalLoss(alpha=[1.0, 1.0, 1.0])(*sample(1, 4, 4))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradient_stays_finite_at_a_probability_of_one(perfect: Callable[..., Tensor], gamma: float) -> None:
    label = torch.tensor([[[0, 1]]])
    logits = perfect(label, classes=2).requires_grad_()
    FocalLoss(gamma=gamma)(logits, label).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("ignore_label", [None, 3])
def test_class_mean_equals_the_mean_of_the_means_of_present_classes(sample: Sample, ignore_label: int | None) -> None:
    logits, label = sample(2, 5, 6, classes=5, dtype=torch.float64)
    label[label == 4] = 0  # absent
    p = logits.softmax(1).gather(1, label)
    voxels = -((1 - p) ** 2) * p.log()
    by_class = [voxels[label == value].mean() for value in range(4) if value != ignore_label]
    found = FocalLoss(class_mean=True, ignore_label=ignore_label)(logits, label)
    torch.testing.assert_close(found, torch.stack(by_class).mean())
