"""The centreline term: shapes counted by hand, MONAI's value, classes, and what thick and broken vessels cost."""

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
    """A horizontal vessel of 3 x 9 voxels that crosses the image; its skeleton is the 9 voxels of its middle row."""
    label = torch.zeros(1, 1, 7, 9, dtype=torch.long)
    label[..., 2:5, :] = 1
    return label


def test_half_a_vessel_by_hand(bar: Tensor, perfect: Perfect) -> None:
    # Five of nine columns predicted. Precision: its skeleton lies inside, 1. Sensitivity: (5 + s) / (9 + s), s = 1.
    half = bar.clone()
    half[..., 5:] = 0
    sensitivity = 6 / 10
    expected = 1 - 2 * sensitivity / (1 + sensitivity)
    loss = SoftClDiceLoss(iterations=2)(perfect(half, classes=2), bar)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_a_vessel_that_is_not_there_by_hand(bar: Tensor, perfect: Perfect) -> None:
    # Nine skeleton voxels outside: precision (0 + 1) / (9 + 1); an empty label is found whole: sensitivity 1.
    loss = SoftClDiceLoss(iterations=2)(perfect(bar, classes=2), torch.zeros_like(bar))
    torch.testing.assert_close(loss, torch.tensor(1 - 2 * 0.1 / 1.1))


def test_a_gap_costs_more_centreline_than_dice_and_a_thick_wall_none(bar: Tensor, perfect: Perfect) -> None:
    # A voxel's gap in a long vessel, and one voxel more on either side of all of it.
    long = bar.repeat(1, 1, 1, 6)
    gap, thick = long.clone(), long.clone()
    gap[..., 20:23] = 0
    thick[..., 1:6, :] = 1
    centreline, region = SoftClDiceLoss(iterations=3), SoftDiceLoss()
    by_gap, by_wall = (perfect(each, classes=2) for each in (gap, thick))
    assert centreline(by_wall, long) == 0
    assert region(by_wall, long) > 5 * region(by_gap, long)
    assert centreline(by_gap, long) > region(by_gap, long) * 0.9


@pytest.mark.parametrize("shape", [(3, 9, 11), (2, 6, 7, 5)])
@pytest.mark.parametrize("iterations", [0, 3])
def test_two_classes_equal_monais(sample: Sample, shape: tuple[int, ...], iterations: int) -> None:
    logits, label = sample(*shape, classes=2, dtype=torch.float64)
    # MONAI adds `smooth` to the harmonic mean's denominator; at its smallest the two are the same formula.
    monai = MonaiSoftClDiceLoss(
        iter_=iterations, include_background=False, to_onehot_y=True, softmax=True, smooth=1e-300
    )
    for vessels_of in ("union", "each"):
        ours = SoftClDiceLoss(iterations=iterations, vessels_of=vessels_of)
        found, expected = ours(logits, label), monai(logits, label)
        torch.testing.assert_close(found, expected)
        (gradient,), (monais,) = (torch.autograd.grad(value, logits) for value in (found, expected))
        torch.testing.assert_close(gradient, monais)


def test_each_class_is_monais_mean_over_classes(sample: Sample) -> None:
    logits, label = sample(2, 5, 6, 7, classes=4, dtype=torch.float64)
    monai = MonaiSoftClDiceLoss(iter_=2, smooth=1e-300)
    one_hot = F.one_hot(label[:, 0], 4).movedim(-1, 1).double()
    by_class = [monai(logits.softmax(1)[:, k : k + 1], one_hot[:, k : k + 1]) for k in (1, 2, 3)]
    found = SoftClDiceLoss(iterations=2, vessels_of="each")(logits, label)
    torch.testing.assert_close(found, torch.stack(by_class).mean())


def test_the_union_does_not_ask_which_class_a_vessel_has(bar: Tensor, perfect: Perfect) -> None:
    other = 2 * bar
    assert SoftClDiceLoss(iterations=2)(perfect(other, classes=3), bar) == 0
    assert SoftClDiceLoss(iterations=2, vessels_of="each")(perfect(other, classes=3), bar) > 0.5


def test_pooling_equals_one_large_sample(sample: Sample) -> None:
    logits, label = sample(2, 6, 8)
    apart = torch.zeros(1, 4, 6, 3)  # background between the two, which each one's border would have been
    apart[:, 0] = 200
    joined = torch.cat([logits[:1], apart, logits[1:]], 3)
    between = torch.zeros(1, 1, 6, 3, dtype=torch.long)
    padded = [torch.cat([each, apart], 3) for each in (logits[:1], logits[1:])]
    labels = [torch.cat([each, between], 3) for each in (label[:1], label[1:])]
    first = torch.cat([torch.cat([apart, padded[0]], 3), torch.cat([apart, padded[1]], 3)])
    first_label = torch.cat([torch.cat([between, labels[0]], 3), torch.cat([between, labels[1]], 3)])
    whole = torch.cat([apart, joined, apart], 3)
    whole_label = torch.cat([between, label[:1], between, label[1:], between], 3)
    for vessels_of in ("union", "each"):
        pooled = SoftClDiceLoss(iterations=2, vessels_of=vessels_of, batch_dice=True)(first, first_label)
        torch.testing.assert_close(pooled, SoftClDiceLoss(iterations=2, vessels_of=vessels_of)(whole, whole_label))


@pytest.mark.parametrize("vessels_of", ["union", "each"])
def test_what_is_predicted_in_ignored_voxels_does_not_matter(sample: Sample, vessels_of: str) -> None:
    logits, label = sample(2, 8, 9, dtype=torch.float64)
    label[..., 4:] = 255
    loss = SoftClDiceLoss(vessels_of=vessels_of, ignore_label=255)  # type: ignore[arg-type]  # a literal
    loss(logits, label).backward()
    assert logits.grad is not None
    assert logits.grad[..., :4].any()
    assert not logits.grad[..., 4:].any()
