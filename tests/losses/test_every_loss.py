"""Contract of all losses."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from uumamba.losses import (
    CrossEntropyLoss,
    DeepSupervisionLoss,
    FocalLoss,
    ReleasedCodeLoss,
    SoftClDiceLoss,
    SoftDiceLoss,
    SummedLoss,
    UncertaintyWeightedLoss,
)

Sample = Callable[..., tuple[Tensor, Tensor]]
Refused = Callable[..., AbstractContextManager[object]]

LOSSES = {
    "dice": SoftDiceLoss,
    "dice ignoring": lambda: SoftDiceLoss(ignore_label=3, batch_dice=True),
    "cross entropy": CrossEntropyLoss,
    "cross entropy ignoring": lambda: CrossEntropyLoss(ignore_label=3),
    "focal": FocalLoss,
    "focal with alpha": lambda: FocalLoss(alpha=0.25),
    "focal by class": lambda: FocalLoss(alpha=(0.1, 0.2, 0.3, 0.4), ignore_label=3),
    "focal by class mean": lambda: FocalLoss(class_mean=True, ignore_label=3),
    "centreline": SoftClDiceLoss,
    "centreline of each": lambda: SoftClDiceLoss(vessels_of="each", batch_dice=True, ignore_label=3),
    "summed": lambda: SummedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()}),
    "uncertainty": lambda: UncertaintyWeightedLoss({"region": SoftDiceLoss(), "pixel": FocalLoss()}),
    "released code": ReleasedCodeLoss,
    "deep supervision": lambda: DeepSupervisionLoss(SoftDiceLoss()),
}
IGNORING: dict[str, Callable[..., nn.Module]] = {
    "dice": SoftDiceLoss,
    "cross entropy": CrossEntropyLoss,
    "focal": FocalLoss,
    "focal with alpha": partial(FocalLoss, alpha=0.3),
    "focal by class": partial(FocalLoss, class_mean=True),
}


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> nn.Module:
    return LOSSES[request.param]()


def test_forward_and_backward_do_not_wait_for_the_device(loss: nn.Module) -> None:
    # A meta tensor has no data: copies to the host, .item() and shapes that depend on values raise.
    logits = torch.empty(2, 4, 8, 8, device="meta", requires_grad=True)
    label = torch.empty(2, 1, 8, 8, device="meta", dtype=torch.long)
    loss.to("meta")(logits, label).backward()
    assert logits.grad is not None


@pytest.mark.parametrize("shape", [(2, 9), (2, 8, 9), (2, 4, 5, 6)])
def test_loss_and_gradient_are_finite_for_any_number_of_axes(
    loss: nn.Module, sample: Sample, shape: tuple[int, ...]
) -> None:
    logits, label = sample(*shape)
    value = loss(logits, label)
    value.backward()
    assert value.shape == ()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.any()


def test_a_perfect_prediction_has_the_smallest_loss(
    loss: nn.Module, sample: Sample, perfect: Callable[..., Tensor]
) -> None:
    _, label = sample(2, 6, 6)
    best = loss(perfect(label, classes=4), label)
    generator = torch.Generator().manual_seed(3)
    for scale in (0.0, 0.3, 3.0, 30.0):
        other = perfect(label, classes=4, confidence=5.0) + scale * torch.randn(2, 4, 6, 6, generator=generator)
        assert loss(other, label) >= best


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"focal by class"}))
def test_a_permutation_of_foreground_classes_does_not_change_the_loss(name: str, sample: Sample) -> None:
    logits, label = sample(2, 6, 6)
    swap = torch.tensor([0, 2, 1, 3])
    loss = LOSSES[name]()
    torch.testing.assert_close(loss(logits[:, swap], swap[label]), loss(logits, label))


def test_labels_of_any_integer_type_have_the_same_loss(loss: nn.Module, sample: Sample) -> None:
    logits, label = sample(2, 6, 6)
    assert loss(logits, label.to(torch.uint8)) == loss(logits, label)


def test_bfloat16_logits_are_summed_in_float32(loss: nn.Module, sample: Sample) -> None:
    logits, label = sample(2, 16, 16)
    low = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(low, label)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(low.float(), label))


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"released code"}))  # consists of torch's operators
def test_gradients_equal_finite_differences(name: str, sample: Sample) -> None:
    logits, label = sample(2, 3, 4, dtype=torch.float64)
    loss = LOSSES[name]().double()
    assert torch.autograd.gradcheck(lambda z: loss(z, label), logits)


@pytest.mark.parametrize("name", IGNORING)
def test_loss_with_ignored_voxels_equals_that_of_the_other_voxels(name: str, sample: Sample) -> None:
    logits, label = sample(2, 6, 8, dtype=torch.float64)
    ignored = label.clone()
    ignored[..., 4:] = 255
    cropped = IGNORING[name](ignore_label=None)(logits[..., :4], label[..., :4])
    torch.testing.assert_close(IGNORING[name](ignore_label=255)(logits, ignored), cropped)


@pytest.mark.parametrize("name", [*IGNORING, "centreline"])
def test_loss_and_gradient_are_zero_if_all_voxels_are_ignored(name: str) -> None:
    make = (IGNORING | {"centreline": SoftClDiceLoss})[name]
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = make(ignore_label=255)(logits, torch.full((1, 1, 4, 4), 255))
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("make", [SoftDiceLoss, partial(SoftDiceLoss, include_background=True)])
def test_a_pooled_batch_equals_one_large_sample(make: Callable[..., nn.Module], sample: Sample) -> None:
    logits, label = sample(2, 4, 8)
    joined = make()(torch.cat(list(logits), 1)[None], torch.cat(list(label), 1)[None])
    torch.testing.assert_close(make(batch_dice=True)(logits, label), joined)


def test_labels_and_logits_that_do_not_fit_are_refused(loss: nn.Module, sample: Sample, refused: Refused) -> None:
    logits, label = sample(2, 6, 6)
    with refused("label", got=(2, 6, 6)):
        loss(logits, label[:, 0])
    with refused("label", got=torch.float32):
        loss(logits, label.float())
    with refused("logits", got=(1, 1, 4, 4)):
        loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.long))


@pytest.mark.parametrize(
    ("make", "key", "got"),
    [
        (SoftDiceLoss, "smooth", 0),
        (SoftClDiceLoss, "smooth", 0.0),
        (SoftClDiceLoss, "iterations", -1),
        (SoftClDiceLoss, "vessels_of", "all"),
        (FocalLoss, "gamma", -1.0),
        (FocalLoss, "alpha", 1.5),
        (FocalLoss, "alpha", (0.5, -1.0)),
        (UncertaintyWeightedLoss, "losses", {}),
        (SummedLoss, "losses", {}),
        *((partial(DeepSupervisionLoss, CrossEntropyLoss()), "weights", each) for each in ((0, 0), (1, -1), ())),
    ],
)
def test_arguments_out_of_range_are_refused(
    make: Callable[..., nn.Module], key: str, got: object, refused: Refused
) -> None:
    with refused(key, got=got):
        make(**{key: got})
