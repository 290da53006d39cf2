"""Contract of all losses: one meaning of labels for small and large logits."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from math import inf, nan

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
    slabs,
)

Sample = Callable[..., tuple[Tensor, Tensor]]
Refused = Callable[..., AbstractContextManager[object]]
Make = Callable[..., nn.Module]

LOSSES: dict[str, Make] = {
    "dice": SoftDiceLoss,
    "dice of the batch": partial(SoftDiceLoss, batch_dice=True, include_background=True),
    "cross entropy": CrossEntropyLoss,
    "focal": FocalLoss,
    "focal with alpha": partial(FocalLoss, alpha=(0.1, 0.2, 0.3, 0.4)),
    "focal by class": partial(FocalLoss, class_mean=True),
    "centreline": SoftClDiceLoss,
    "centreline of each": partial(SoftClDiceLoss, vessels_of="each"),
    "released code": ReleasedCodeLoss,
    "summed": lambda **options: SummedLoss({"region": SoftDiceLoss(**options), "pixel": FocalLoss(**options)}),
    "uncertainty": lambda **options: UncertaintyWeightedLoss({"distribution": CrossEntropyLoss(**options)}),
    "deep supervision": lambda **options: DeepSupervisionLoss(ReleasedCodeLoss(**options)),
}
IGNORED = {"NaN": nan, "infinite": inf, "minus infinite": -inf, "huge": 3e38}
BAD_VALUES = {
    "above the classes": (4, None),
    "255 without a name": (255, None),
    "-100 without a name": (-100, None),
    "-100 beside another name": (-100, 255),
    "below zero": (-1, 255),
    "another name": (254, 255),
    "above int32": (2**40, -100),
}


@pytest.fixture(params=LOSSES)
def make(request: pytest.FixtureRequest) -> Make:
    return LOSSES[request.param]


@pytest.fixture(params=["small", "in slabs"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in slabs":
        monkeypatch.setattr(slabs, "SLAB_VALUES", 60)


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize(("value", "ignore_label"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_label_that_is_neither_class_nor_named_is_refused_with_its_value(
    make: Make, value: int, ignore_label: int | None, sample: Sample, refused: Refused
) -> None:
    logits, label = sample(2, 6, 8)
    label[1, 0, 2, 3] = value
    with refused("label", got=value) as error:
        make(ignore_label=ignore_label)(logits, label)
    assert f"ignore_label={value}" in str(error.value)  # type: ignore[attr-defined]  # an ExceptionInfo
    # The cure is right: the same label is accepted if it is named.
    assert torch.isfinite(make(ignore_label=value)(logits, label))


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize(
    ("change", "got", "fix"),
    [
        (lambda label: torch.where(label == 1, nan, label), torch.float32, "label.long()"),
        (lambda label: label + 0.5, torch.float32, "label.long()"),
        (lambda label: label > 0, torch.bool, "label.long()"),
        (lambda label: label[:, 0], (2, 6, 8), "label[:, None]"),
        (lambda label: label.movedim(1, -1), (2, 6, 8, 1), "label.movedim(-1, 1)"),
        (lambda label: label.expand(-1, 4, -1, -1), (2, 4, 6, 8), "label.argmax(1, keepdim=True)"),
        (lambda label: label[:1], (1, 1, 6, 8), "the grid of the logits"),
        (lambda label: label[..., :4], (2, 1, 6, 4), "the grid of the logits"),
    ],
    ids=["NaN", "not whole", "bool", "no channel", "channel last", "one-hot", "one sample", "another grid"],
)
def test_a_label_of_another_type_or_shape_is_refused_with_its_cure(
    make: Make, change: Callable[[Tensor], Tensor], got: object, fix: str, sample: Sample, refused: Refused
) -> None:
    logits, label = sample(2, 6, 8)
    loss = make()
    loss = loss.loss if isinstance(loss, DeepSupervisionLoss) else loss  # it resizes labels to the grid
    with refused("label", got=got) as error:
        loss(logits, change(label))
    assert fix in str(error.value)  # type: ignore[attr-defined]  # an ExceptionInfo


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("ignore_label", [255, -100, 3])
@pytest.mark.parametrize("value", IGNORED.values(), ids=IGNORED)
def test_logits_of_ignored_voxels_change_neither_loss_nor_gradient(
    make: Make, value: float, ignore_label: int, sample: Sample
) -> None:
    logits, label = sample(2, 6, 8)
    ignored = torch.rand(label.shape, generator=torch.Generator().manual_seed(5)) < 0.3
    label[ignored] = ignore_label
    ignored = label == ignore_label
    results = []
    for under in (0.0, value):
        own = logits.detach().masked_fill(ignored, 0.5)
        own[:, 1:3] = own[:, 1:3].masked_fill(ignored, under)
        own.requires_grad_()
        loss = make(ignore_label=ignore_label)
        found = loss(own, label)
        found.backward()
        assert own.grad is not None
        results.append([found, own.grad, *(each.grad for each in loss.parameters())])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
        assert torch.isfinite(one).all()
    assert not results[1][1].masked_select(ignored).any()
    assert results[1][1].any()


@pytest.mark.usefixtures("_path")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16])
def test_a_label_is_ignored_by_its_value_in_every_integer_type(make: Make, dtype: torch.dtype, sample: Sample) -> None:
    logits, label = sample(2, 6, 8)
    ignore_label = 100
    label[..., 4:] = ignore_label
    loss = make(ignore_label=ignore_label)
    assert torch.equal(loss(logits, label.to(dtype)), loss(logits, label))


@pytest.mark.usefixtures("_path")
def test_a_uint8_label_of_156_is_not_taken_for_minus_100(make: Make, sample: Sample, refused: Refused) -> None:
    logits, label = sample(2, 6, 8)
    label[0, 0, 0, 0] = 156
    with refused("label", got=156):
        make(ignore_label=-100)(logits, label.to(torch.uint8))


def test_a_loss_compiles_without_a_graph_break(sample: Sample) -> None:
    logits, label = sample(2, 6, 8)
    loss = SummedLoss({"region": SoftDiceLoss(ignore_label=3), "distribution": CrossEntropyLoss(ignore_label=3)})
    compiled = torch.compile(loss.losses["region"], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, label), loss.losses["region"](logits, label))
    with pytest.raises(RuntimeError, match="label: got a value out of range, expected classes 0 to 3, or 3"):
        compiled(logits, label + 1)


@pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"centreline", "centreline of each", "released code"}))
def test_losses_of_each_sample_under_vmap_are_checked(name: str, sample: Sample, refused: Refused) -> None:
    logits, label = sample(2, 6, 8)
    loss = LOSSES[name](ignore_label=3)
    logits = logits.detach()

    def gradient(label: Tensor) -> Tensor:
        return torch.func.vmap(torch.func.grad(lambda z, y: loss(z[None], y[None])))(logits, label)

    assert torch.isfinite(gradient(label)).all()
    label[1, 0, 2, 3] = 7
    with refused("label", got=7):
        gradient(label)


@pytest.mark.parametrize("make", [SoftDiceLoss, CrossEntropyLoss, FocalLoss, SoftClDiceLoss, ReleasedCodeLoss])
@pytest.mark.parametrize("value", ["255", 255.0, True])
def test_an_ignore_label_that_is_no_whole_number_is_refused(make: Make, value: object, refused: Refused) -> None:
    with refused("ignore_label", got=value):
        make(ignore_label=value)
