from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.losses import CrossEntropyLoss, DeepSupervisionLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.losses.deep_supervision import resize_label

Sample = Callable[..., tuple[Tensor, Tensor]]


@pytest.fixture
def pyramid(sample: Sample) -> tuple[list[Tensor], Tensor]:
    """Draw a label and outputs with 16, 8, 4 and 2 voxels."""
    outputs = [sample(2, size, size)[0] for size in (16, 8, 4, 2)]
    return outputs, sample(2, 16, 16)[1]


def test_single_output_has_the_loss_itself(sample: Sample) -> None:
    logits, label = sample(2, 8, 8)
    expected = SoftDiceLoss()(logits, label)
    assert DeepSupervisionLoss(SoftDiceLoss())(logits, label) == expected
    assert DeepSupervisionLoss(SoftDiceLoss())([logits], label) == expected


@pytest.mark.parametrize(
    ("weights", "expected"),
    [(None, (4 / 7, 2 / 7, 1 / 7, 0.0)), (None, (1.0, 0.0)), ([2, 1, 1, 0], (0.5, 0.25, 0.25, 0.0))],
    ids=["four outputs", "two outputs", "given"],
)
def test_weights_halve_with_the_last_zero_unless_given_and_have_the_sum_one(
    pyramid: tuple[list[Tensor], Tensor], weights: list[float] | None, expected: tuple[float, ...]
) -> None:
    (outputs, label), loss = pyramid, CrossEntropyLoss()
    terms = [loss(output, label[..., :: 2**scale, :: 2**scale]) for scale, output in enumerate(outputs)]
    total = sum(weight * term for weight, term in zip(expected, terms, strict=False))
    torch.testing.assert_close(DeepSupervisionLoss(loss, weights)(outputs[: len(expected)], label), total)


def test_the_coarsest_output_has_the_gradient_zero(pyramid: tuple[list[Tensor], Tensor]) -> None:
    outputs, label = pyramid
    DeepSupervisionLoss(CrossEntropyLoss())(outputs, label).backward()
    gradients = [output.grad for output in outputs]
    assert all(gradient is not None for gradient in gradients)
    assert [bool(gradient.any()) for gradient in gradients if gradient is not None] == [True, True, True, False]


def test_last_terms_belong_to_the_finest_output(pyramid: tuple[list[Tensor], Tensor]) -> None:
    outputs, label = pyramid
    inner = UncertaintyWeightedLoss({"distribution": CrossEntropyLoss()})
    DeepSupervisionLoss(inner)(outputs, label)
    assert inner.last_terms["distribution"] == CrossEntropyLoss()(outputs[0], label)


@pytest.mark.parametrize(("old", "new"), [((8, 12), (4, 3)), ((7, 9), (4, 5)), ((6, 8, 10), (6, 4, 5))])
def test_labels_are_downsampled_like_torchs_nearest(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    label = torch.randint(0, 5, (2, 1, *old))
    expected = F.interpolate(label.float(), size=new, mode="nearest").long()
    assert torch.equal(resize_label(label, new), expected)


def test_a_wrong_number_of_weights_is_refused(pyramid: tuple[list[Tensor], Tensor], refused) -> None:
    outputs, label = pyramid
    with refused("weights", got=(0.5, 0.5)):
        DeepSupervisionLoss(CrossEntropyLoss(), weights=[1, 1])(outputs, label)


@pytest.mark.parametrize("shape", [(2, 1, 8, 16), (2, 16, 16, 1), (2, 1, 15, 15)])
def test_a_label_that_is_coarser_than_the_finest_output_is_refused(
    pyramid: tuple[list[Tensor], Tensor], shape: tuple[int, ...], refused
) -> None:
    with refused("label", got=shape):
        DeepSupervisionLoss(CrossEntropyLoss())(pyramid[0], torch.zeros(shape, dtype=torch.long))
