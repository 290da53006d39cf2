"""What all losses promise alike."""

from collections.abc import Callable

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


@pytest.fixture(params=LOSSES)
def loss(request: pytest.FixtureRequest) -> nn.Module:
    return LOSSES[request.param]()


def test_neither_pass_waits_for_the_device(loss: nn.Module) -> None:
    # a meta tensor has no data: any copy to the host, any .item() and any shape that depends on values fails
    logits = torch.empty(2, 4, 8, 8, device="meta", requires_grad=True)
    label = torch.empty(2, 1, 8, 8, device="meta", dtype=torch.long)
    loss.to("meta")(logits, label).backward()
    assert logits.grad is not None


@pytest.mark.parametrize("shape", [(2, 9), (2, 8, 9), (2, 4, 5, 6)])
def test_one_class_serves_every_number_of_axes(loss: nn.Module, sample: Sample, shape: tuple[int, ...]) -> None:
    logits, label = sample(*shape)
    value = loss(logits, label)
    value.backward()
    assert value.shape == ()
    assert torch.isfinite(value)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.any()


def test_a_perfect_prediction_is_the_minimum(loss: nn.Module, sample: Sample, perfect: Callable[..., Tensor]) -> None:
    _, label = sample(2, 6, 6)
    best = loss(perfect(label, classes=4), label)
    generator = torch.Generator().manual_seed(3)
    for scale in (0.0, 0.3, 3.0, 30.0):
        other = perfect(label, classes=4, sureness=5.0) + scale * torch.randn(2, 4, 6, 6, generator=generator)
        assert loss(other, label) >= best


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"focal by class"}))
def test_foreground_classes_may_be_renamed(name: str, sample: Sample) -> None:
    logits, label = sample(2, 6, 6)
    swap = torch.tensor([0, 2, 1, 3])
    loss = LOSSES[name]()
    torch.testing.assert_close(loss(logits[:, swap], swap[label]), loss(logits, label))


def test_a_label_without_its_channel_is_refused(loss: nn.Module, sample: Sample) -> None:
    logits, label = sample(2, 6, 6)
    with pytest.raises(ValueError, match=r"label must be \(batch, 1, \*spatial\) .* got \(2, 6, 6\)"):
        loss(logits, label[:, 0])


def test_a_label_of_floats_is_refused(loss: nn.Module, sample: Sample) -> None:
    logits, label = sample(2, 6, 6)
    with pytest.raises(TypeError, match=r"label must hold integer classes such as torch\.int64, got torch\.float32"):
        loss(logits, label.float())


def test_one_class_is_refused(loss: nn.Module) -> None:
    with pytest.raises(ValueError, match="at least 2 classes, got shape"):
        loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.long))
