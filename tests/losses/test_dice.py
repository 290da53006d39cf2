from collections.abc import Callable

import pytest
import torch
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional as F

from uumamba.losses import SoftDiceLoss
from uumamba.losses.dice import overlap_sums

Sample = Callable[..., tuple[Tensor, Tensor]]


def test_four_voxels_by_hand() -> None:
    # p(class 1) = 1/2 in every voxel; the label has two of four: (2 * 1 + s) / (2 + 2 + s) with s = 1e-5
    label = torch.tensor([0, 1, 1, 0]).reshape(1, 1, 2, 2)
    expected = 1 - (2 + 1e-5) / (4 + 1e-5)
    torch.testing.assert_close(SoftDiceLoss()(torch.zeros(1, 2, 2, 2), label), torch.tensor(expected))


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
    ours = SoftDiceLoss(batch_dice=batch_dice, include_background=include_background)
    values = [loss(logits, label) for loss in (ours, monai)]
    gradients = [torch.autograd.grad(value, logits)[0] for value in values]
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_perfect_prediction_is_the_minimum_also_with_an_absent_class(perfect: Callable[..., Tensor]) -> None:
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


def test_absent_class_has_the_dice_of_the_smoothing() -> None:
    label = torch.zeros(1, 1, 2, 2, dtype=torch.long)
    loss = SoftDiceLoss(smooth=1.0)(torch.zeros(1, 2, 2, 2), label)  # 1 - s / (4 * 0.5 + s) with s = 1
    torch.testing.assert_close(loss, torch.tensor(2 / 3))


def test_ignored_voxels_count_in_no_sum(sample: Sample) -> None:
    logits, label = sample(2, 6, 8, dtype=torch.float64)
    ignored = label.clone()
    ignored[..., 4:] = 255
    cropped = SoftDiceLoss()(logits[..., :4], label[..., :4])
    torch.testing.assert_close(SoftDiceLoss(ignore_label=255)(logits, ignored), cropped)


def test_nothing_but_ignored_voxels_gives_zero() -> None:
    label = torch.full((1, 1, 4, 4), 255)
    assert SoftDiceLoss(ignore_label=255)(torch.zeros(1, 3, 4, 4), label) == 0


def test_pooling_equals_one_large_sample(sample: Sample) -> None:
    logits, label = sample(2, 4, 8)
    pooled = SoftDiceLoss(batch_dice=True)(logits, label)
    joined = SoftDiceLoss()(torch.cat(list(logits), 1)[None], torch.cat(list(label), 1)[None])
    torch.testing.assert_close(pooled, joined)


def test_gradient_is_right(sample: Sample) -> None:
    logits, label = sample(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: SoftDiceLoss()(z, label), logits)


def test_sums_keep_their_digits_over_a_large_volume() -> None:
    # one running float32 sum of 2**24 times 0.3 is 5 % off; the rows' sums are not
    probabilities = torch.full((1, 1, 256, 256, 256), 0.3)
    label = torch.zeros(1, 1, 256, 256, 256, dtype=torch.uint8)
    intersection, total = overlap_sums(probabilities, label)
    expected = 0.3 * 2**24
    assert intersection.item() == pytest.approx(expected, rel=1e-5)
    assert total.item() == pytest.approx(expected + 2**24, rel=1e-5)


def test_label_dtype_does_not_matter(sample: Sample) -> None:
    logits, label = sample(2, 4, 4)
    assert SoftDiceLoss()(logits, label.to(torch.uint8)) == SoftDiceLoss()(logits, label)


def test_it_is_float32_inside_under_autocast(sample: Sample) -> None:
    logits, label = sample(2, 16, 16)
    low = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = SoftDiceLoss()(low, label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, SoftDiceLoss()(low.float(), label))


def test_smooth_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="smooth must be positive, got 0"):
        SoftDiceLoss(smooth=0)


def test_one_hot_is_the_slow_reference_of_the_sums(sample: Sample) -> None:
    logits, label = sample(2, 5, 6, dtype=torch.float64)
    p, y = logits.softmax(1), F.one_hot(label[:, 0], 4).movedim(-1, 1)
    intersection, total = overlap_sums(p, label)
    torch.testing.assert_close(intersection, (p * y).sum((2, 3)))
    torch.testing.assert_close(total, p.sum((2, 3)) + y.sum((2, 3)))
