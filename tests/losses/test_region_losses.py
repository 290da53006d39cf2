"""Losses of overlapping regions, compared with torch, MONAI and softmax losses."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import monai.losses
import pytest
import torch
from torch import Tensor, nn

from uumamba.losses import (
    CrossEntropyLoss,
    DeepSupervisionLoss,
    FocalLoss,
    RegionClDiceLoss,
    RegionCrossEntropyLoss,
    RegionDiceLoss,
    RegionFocalLoss,
    SoftClDiceLoss,
    SoftDiceLoss,
    UncertaintyWeightedLoss,
)
from uumamba.losses.region_masks import RegionTerm

Sample = Callable[..., tuple[Tensor, Tensor]]
Refused = Callable[..., AbstractContextManager[object]]
# Classes 1 to 3; whole contains all of them, core contains 2 and 3, and the third region is class 3.
NESTED = [[False, False, False], [True, False, False], [True, True, False], [True, True, True]]
LOSSES: dict[str, Callable[..., nn.Module]] = {
    "dice": partial(RegionDiceLoss, NESTED),
    "dice of the batch": partial(RegionDiceLoss, NESTED, batch_dice=True),
    "cross entropy": partial(RegionCrossEntropyLoss, NESTED),
    "focal": partial(RegionFocalLoss, NESTED),
    "focal by class": partial(RegionFocalLoss, NESTED, class_mean=True),
    "centreline": partial(RegionClDiceLoss, NESTED),
    "centreline of each": partial(RegionClDiceLoss, NESTED, vessels_of="each", batch_dice=True),
}
BY_VOXELS = [name for name in LOSSES if not name.startswith("centreline")]  # a skeleton depends on the grid


def masks_of(label: Tensor) -> Tensor:
    """Return the masks of NESTED, by comparison of numbers."""
    return torch.cat([label >= least for least in (1, 2, 3)], dim=1)


@pytest.fixture
def regions(sample: Sample) -> Sample:
    """Draw logits of three regions and a label of four classes."""

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        logits, label = sample(*shape, dtype=dtype)
        return logits[:, :3].detach().requires_grad_(), label

    return make


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> nn.Module:
    return LOSSES[request.param]()


@pytest.mark.parametrize("shape", [(2, 9), (2, 8, 9), (2, 4, 5, 6)])
def test_masks_are_those_of_the_table(regions: Sample, shape: tuple[int, ...]) -> None:
    logits, label = regions(*shape)
    label[:, :, :2] = 255
    _, masks, valid = RegionTerm(torch.tensor(NESTED), ignore_label=255).read(logits, label)
    assert torch.equal(masks, masks_of(label) & (label != 255))
    assert valid is not None
    assert torch.equal(valid, label != 255)


@pytest.mark.parametrize("shape", [(2, 8, 9), (2, 4, 5, 6)])
def test_terms_equal_those_of_torch_and_monai(regions: Sample, shape: tuple[int, ...]) -> None:
    logits, label = regions(*shape, dtype=torch.float64)
    logits = 4 * logits
    target = masks_of(label).double()
    binary = nn.functional.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(RegionCrossEntropyLoss(NESTED)(logits, label), binary)
    torch.testing.assert_close(RegionFocalLoss(NESTED, gamma=0.0)(logits, label), binary)
    focal = monai.losses.FocalLoss(gamma=2.0)(logits, target)  # in float32
    torch.testing.assert_close(RegionFocalLoss(NESTED, gamma=2.0)(logits, label).float(), focal)
    for batch in (False, True):
        dice = monai.losses.DiceLoss(sigmoid=True, batch=batch, smooth_nr=1e-5, smooth_dr=1e-5)(logits, target)
        torch.testing.assert_close(RegionDiceLoss(NESTED, batch_dice=batch)(logits, label), dice)


def test_focal_by_class_is_the_mean_inside_and_outside_of_present_regions(regions: Sample) -> None:
    logits, label = regions(2, 6, 7, dtype=torch.float64)
    label[label == 3] = 2
    values = nn.functional.binary_cross_entropy_with_logits(logits, masks_of(label).double(), reduction="none")
    values = (1 - (-values).exp()) ** 2 * values
    sides = [values[:, r][side] for r, mask in enumerate(masks_of(label).unbind(1)) for side in (mask, ~mask)]
    means = [side.mean() for side in sides if len(side)]
    assert len(means) == 5, "the third region is absent"
    torch.testing.assert_close(RegionFocalLoss(NESTED, class_mean=True)(logits, label), torch.stack(means).mean())


@pytest.mark.parametrize(
    ("region", "softmax", "options"),
    [
        (RegionDiceLoss, SoftDiceLoss, {}),
        (RegionDiceLoss, SoftDiceLoss, {"batch_dice": True, "ignore_label": 255}),
        (RegionCrossEntropyLoss, CrossEntropyLoss, {"ignore_label": 255}),
        (RegionFocalLoss, FocalLoss, {"gamma": 3.0, "ignore_label": 255}),
        (RegionFocalLoss, FocalLoss, {"class_mean": True, "ignore_label": 255}),
        (RegionClDiceLoss, SoftClDiceLoss, {"iterations": 2, "ignore_label": 255}),
        (RegionClDiceLoss, SoftClDiceLoss, {"vessels_of": "each"}),
    ],
)
def test_one_region_equals_softmax_of_two_classes(
    region: Any, softmax: Any, options: dict[str, Any], sample: Sample
) -> None:
    two, label = sample(2, 6, 9, classes=2, dtype=torch.float64)
    if "ignore_label" in options:
        label[..., :3] = 255
    one = (two[:, 1:] - two[:, :1]).detach().requires_grad_()  # the sigmoid of the difference is the softmax
    both = torch.cat([torch.zeros_like(one), one], dim=1)
    value, expected = region([[False], [True]], **options)(one, label), softmax(**options)(both, label)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(*(torch.autograd.grad(each, one)[0] for each in (value, expected)))


def test_a_perfect_prediction_has_the_smallest_loss(loss: nn.Module, regions: Sample) -> None:
    _, label = regions(2, 6, 6)
    sure = masks_of(label).float() * 400 - 200
    best = loss(sure, label)
    assert best.abs() < 1e-6
    generator = torch.Generator().manual_seed(3)
    for scale in (0.3, 3.0, 30.0):
        assert loss(sure / 40 + scale * torch.randn(sure.shape, generator=generator), label) >= best


def test_gradients_equal_finite_differences(loss: nn.Module, regions: Sample) -> None:
    logits, label = regions(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: loss(z, label), logits)


def test_half_precision_is_summed_in_float32_and_no_call_waits_for_the_device(loss: nn.Module, regions: Sample) -> None:
    logits, label = regions(2, 16, 16)
    low = logits.detach().bfloat16()
    torch.testing.assert_close(loss(low, label.to(torch.uint8)), loss(low.float(), label))
    logits = torch.empty(2, 3, 8, 8, device="meta", requires_grad=True)
    loss.to("meta")(logits, torch.empty(2, 1, 8, 8, device="meta", dtype=torch.long)).backward()
    assert logits.grad is not None


@pytest.mark.parametrize("name", BY_VOXELS)
def test_loss_with_ignored_voxels_equals_that_of_the_other_voxels(name: str, regions: Sample) -> None:
    logits, label = regions(2, 6, 8, dtype=torch.float64)
    ignored = label.clone()
    ignored[..., 4:] = 255
    cropped = LOSSES[name]()(logits[..., :4], label[..., :4])
    torch.testing.assert_close(LOSSES[name](ignore_label=255)(logits, ignored), cropped)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_zero_if_all_voxels_are_ignored(name: str) -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = LOSSES[name](ignore_label=255)(logits, torch.full((1, 1, 4, 4), 255))
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_compound_losses_and_deep_supervision_take_regions(regions: Sample) -> None:
    logits, label = regions(2, 8, 8)
    loss = UncertaintyWeightedLoss({"region": RegionDiceLoss(NESTED), "pixel": RegionFocalLoss(NESTED)})
    assert not [*RegionDiceLoss(NESTED).state_dict()], "the table follows from the data set"
    value = DeepSupervisionLoss(loss)([logits, logits[..., ::2, ::2]], label)
    value.backward()
    assert logits.grad is not None
    assert logits.grad.any()


def test_tables_logits_and_labels_that_do_not_fit_are_refused(
    loss: nn.Module, regions: Sample, refused: Refused
) -> None:
    logits, label = regions(2, 6, 6)
    with refused("logits", got=(2, 2, 6, 6)):
        loss(logits[:, :2], label)
    with refused("label", got=4):
        loss(logits, label.clamp_min(1) + 1)
    with refused("label", got=(2, 6, 6)):
        loss(logits, label[:, 0])
    for table in ([], [[True]], [[False], [True, True]], [[False, False], [True, False]], [[], []]):
        with refused("membership", got=table):
            RegionTerm(table)
