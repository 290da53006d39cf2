"""Soft clDice against values by hand, MONAI and the Dice loss."""

from collections.abc import Callable

import pytest
import torch
from monai.losses import SoftclDiceLoss as MonaiSoftClDiceLoss
from torch import Tensor
from torch.nn import functional as F

from uumamba.losses import SoftClDiceLoss, SoftDiceLoss

Sample = Callable[..., tuple[Tensor, Tensor]]
Perfect = Callable[..., Tensor]


@pytest.fixture
def bar() -> Tensor:
    """Draw a horizontal vessel of 3 x 9 voxels across the image.

    Its skeleton is the 9 voxels of the middle row.
    """
    label = torch.zeros(1, 1, 7, 9, dtype=torch.long)
    label[..., 2:5, :] = 1
    return label


def test_half_a_predicted_vessel_has_the_loss_computed_by_hand(bar: Tensor, perfect: Perfect) -> None:
    # Five of nine columns are predicted. Precision: 1. Sensitivity: (5 + s) / (9 + s), s = 1.
    half = bar.clone()
    half[..., 5:] = 0
    sensitivity = 6 / 10
    expected = 1 - 2 * sensitivity / (1 + sensitivity)
    loss = SoftClDiceLoss(iterations=2)(perfect(half, classes=2), bar)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_a_predicted_vessel_without_label_has_the_loss_computed_by_hand(bar: Tensor, perfect: Perfect) -> None:
    # Nine skeleton voxels outside: precision (0 + 1) / (9 + 1). Empty label: sensitivity 1.
    loss = SoftClDiceLoss(iterations=2)(perfect(bar, classes=2), torch.zeros_like(bar))
    torch.testing.assert_close(loss, torch.tensor(1 - 2 * 0.1 / 1.1))


def test_a_gap_increases_this_loss_and_a_thick_vessel_does_not(bar: Tensor, perfect: Perfect) -> None:
    # A gap of three voxels in a long vessel, and a vessel that is one voxel thicker on each side.
    long = bar.repeat(1, 1, 1, 6)
    gap, thick = long.clone(), long.clone()
    gap[..., 20:23] = 0
    thick[..., 1:6, :] = 1
    centreline, region = SoftClDiceLoss(iterations=3), SoftDiceLoss()
    by_gap, by_thickness = (perfect(each, classes=2) for each in (gap, thick))
    assert centreline(by_thickness, long) == 0
    assert region(by_thickness, long) > 5 * region(by_gap, long)
    assert centreline(by_gap, long) > region(by_gap, long) * 0.9


@pytest.mark.parametrize("shape", [(3, 9, 11), (2, 6, 7, 5)])
@pytest.mark.parametrize("iterations", [0, 3])
def test_value_and_gradient_for_two_classes_equal_monais(
    sample: Sample, shape: tuple[int, ...], iterations: int
) -> None:
    logits, label = sample(*shape, classes=2, dtype=torch.float64)
    # MONAI adds `smooth` to the denominator of the harmonic mean; with a tiny value both formulas are equal.
    monai = MonaiSoftClDiceLoss(
        iter_=iterations, include_background=False, to_onehot_y=True, softmax=True, smooth=1e-300
    )
    for vessels_of in ("union", "each"):
        loss = SoftClDiceLoss(iterations=iterations, vessels_of=vessels_of)
        found, expected = loss(logits, label), monai(logits, label)
        torch.testing.assert_close(found, expected)
        (gradient,), (monais,) = (torch.autograd.grad(value, logits) for value in (found, expected))
        torch.testing.assert_close(gradient, monais)


def test_mean_over_classes_equals_the_mean_of_monais_losses(sample: Sample) -> None:
    logits, label = sample(2, 5, 6, 7, classes=4, dtype=torch.float64)
    monai = MonaiSoftClDiceLoss(iter_=2, smooth=1e-300)
    one_hot = F.one_hot(label[:, 0], 4).movedim(-1, 1).double()
    by_class = [monai(logits.softmax(1)[:, k : k + 1], one_hot[:, k : k + 1]) for k in (1, 2, 3)]
    found = SoftClDiceLoss(iterations=2, vessels_of="each")(logits, label)
    torch.testing.assert_close(found, torch.stack(by_class).mean())


def test_union_ignores_the_class_of_a_vessel(bar: Tensor, perfect: Perfect) -> None:
    other = 2 * bar
    assert SoftClDiceLoss(iterations=2)(perfect(other, classes=3), bar) == 0
    assert SoftClDiceLoss(iterations=2, vessels_of="each")(perfect(other, classes=3), bar) > 0.5


@pytest.mark.parametrize("vessels_of", ["union", "each"])
def test_a_pooled_batch_equals_one_large_sample(sample: Sample, vessels_of: str) -> None:
    logits, label = sample(2, 6, 14)
    logits = logits.detach()
    for border in (logits[..., :3], logits[..., -3:]):  # background, so that joined samples do not touch
        border[:, 0] = 200
    label[..., :3] = label[..., -3:] = 0
    loss, pooled = (SoftClDiceLoss(iterations=2, vessels_of=vessels_of, batch_dice=each) for each in (False, True))  # type: ignore[arg-type]  # a literal
    joined = loss(torch.cat(list(logits), -1)[None], torch.cat(list(label), -1)[None])
    torch.testing.assert_close(pooled(logits, label), joined)


@pytest.mark.parametrize("vessels_of", ["union", "each"])
def test_predictions_in_ignored_voxels_have_no_gradient(sample: Sample, vessels_of: str) -> None:
    logits, label = sample(2, 8, 9, dtype=torch.float64)
    label[..., 4:] = 255
    loss = SoftClDiceLoss(vessels_of=vessels_of, ignore_label=255)  # type: ignore[arg-type]  # a literal
    loss(logits, label).backward()
    assert logits.grad is not None
    assert logits.grad[..., :4].any()
    assert not logits.grad[..., 4:].any()
