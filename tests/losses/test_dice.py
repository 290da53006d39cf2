from collections.abc import Callable

import pytest
import torch
from monai.losses import DiceLoss
from torch import Tensor

from uumamba.losses import SoftDiceLoss

Sample = Callable[..., tuple[Tensor, Tensor]]


@pytest.mark.parametrize(("smooth", "label"), [(1e-5, [0, 1, 1, 0]), (1.0, [0, 0, 0, 0])], ids=["present", "absent"])
def test_four_voxels_of_equal_probability_have_the_loss_computed_by_hand(smooth: float, label: list[int]) -> None:
    # p(class 1) = 1/2 in every voxel: (2 n / 2 + s) / (2 + n + s) with n voxels of class 1
    expected = 1 - (sum(label) + smooth) / (2 + sum(label) + smooth)
    found = SoftDiceLoss(smooth=smooth)(torch.zeros(1, 2, 2, 2), torch.tensor(label).reshape(1, 1, 2, 2))
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("shape", [(3, 7), (3, 6, 5), (2, 4, 5, 6)])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("include_background", [False, True])
def test_value_and_gradient_equal_monais(
    sample: Sample, shape: tuple[int, ...], batch_dice: bool, include_background: bool
) -> None:
    logits, label = sample(*shape, dtype=torch.float64)
    monai = DiceLoss(
        include_background=include_background,
        to_onehot_y=True,
        softmax=True,
        batch=batch_dice,
        smooth_nr=1e-5,
        smooth_dr=1e-5,
    )
    loss = SoftDiceLoss(batch_dice=batch_dice, include_background=include_background)
    values = [each(logits, label) for each in (loss, monai)]
    gradients = [torch.autograd.grad(value, logits)[0] for value in values]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_perfect_prediction_has_the_smallest_loss_also_with_an_absent_class(perfect: Callable[..., Tensor]) -> None:
    label = torch.tensor([0, 1, 1, 3]).reshape(1, 1, 2, 2)
    best = SoftDiceLoss()(perfect(label, classes=4), label)
    assert best == 0
    for voxel in range(4):
        for wrong in range(4):
            guess = label.clone()
            guess.view(-1)[voxel] = wrong
            assert SoftDiceLoss()(perfect(guess, classes=4), label) >= best
    absent_predicted = perfect(torch.full_like(label, 2), classes=4)
    assert SoftDiceLoss()(absent_predicted, torch.zeros_like(label)) > 0.3


def test_sums_keep_their_digits_over_a_large_volume() -> None:
    # A single float32 sum of 2**24 times 0.3 has an error of 5 %; sums of rows have none.
    logits = torch.tensor([0.7, 0.3]).log().reshape(1, 2, 1, 1, 1).expand(1, 2, 256, 256, 256)
    label = torch.ones(1, 1, 256, 256, 256, dtype=torch.uint8)
    assert SoftDiceLoss()(logits, label).item() == pytest.approx(1 - 2 * 0.3 / 1.3, rel=1e-5)
