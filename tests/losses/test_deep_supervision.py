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
    """Outputs at 16, 8, 4 and 2 voxels an axis, and the finest's label."""
    outputs = [sample(2, size, size)[0] for size in (16, 8, 4, 2)]
    return outputs, sample(2, 16, 16)[1]


def test_one_tensor_and_a_list_of_one_get_the_loss_itself(sample: Sample) -> None:
    logits, label = sample(2, 8, 8)
    expected = SoftDiceLoss()(logits, label)
    assert DeepSupervisionLoss(SoftDiceLoss())(logits, label) == expected
    assert DeepSupervisionLoss(SoftDiceLoss())([logits], label) == expected


def test_weights_halve_the_last_is_zero_and_they_sum_to_one(pyramid: tuple[list[Tensor], Tensor]) -> None:
    outputs, label = pyramid
    loss, terms = CrossEntropyLoss(), []
    for output in outputs:
        step = 16 // output.shape[-1]
        terms.append(loss(output, label[..., ::step, ::step]))
    expected = (4 * terms[0] + 2 * terms[1] + 1 * terms[2] + 0 * terms[3]) / 7
    torch.testing.assert_close(DeepSupervisionLoss(loss)(outputs, label), expected)


def test_two_outputs_weigh_only_the_finest(pyramid: tuple[list[Tensor], Tensor]) -> None:
    outputs, label = pyramid
    assert DeepSupervisionLoss(CrossEntropyLoss())(outputs[:2], label) == CrossEntropyLoss()(outputs[0], label)


def test_given_weights_are_normalised(pyramid: tuple[list[Tensor], Tensor]) -> None:
    outputs, label = pyramid
    ours = DeepSupervisionLoss(CrossEntropyLoss(), weights=[2, 1, 1, 0])(outputs, label)
    torch.testing.assert_close(
        ours, DeepSupervisionLoss(CrossEntropyLoss(), weights=[0.5, 0.25, 0.25, 0])(outputs, label)
    )


def test_the_coarsest_output_has_a_gradient_of_zero(pyramid: tuple[list[Tensor], Tensor]) -> None:
    outputs, label = pyramid
    DeepSupervisionLoss(CrossEntropyLoss())(outputs, label).backward()
    gradients = [output.grad for output in outputs]
    assert all(gradient is not None for gradient in gradients)
    assert [bool(gradient.any()) for gradient in gradients if gradient is not None] == [True, True, True, False]


def test_what_the_loss_remembers_is_of_the_finest(pyramid: tuple[list[Tensor], Tensor]) -> None:
    outputs, label = pyramid
    inner = UncertaintyWeightedLoss({"distribution": CrossEntropyLoss()})
    DeepSupervisionLoss(inner)(outputs, label)
    assert inner.last_terms["distribution"] == CrossEntropyLoss()(outputs[0], label)


@pytest.mark.parametrize(("old", "new"), [((8, 12), (4, 3)), ((7, 9), (4, 5)), ((6, 8, 10), (6, 4, 5))])
def test_labels_are_downsampled_as_torchs_nearest(old: tuple[int, ...], new: tuple[int, ...]) -> None:
    label = torch.randint(0, 5, (2, 1, *old))
    expected = F.interpolate(label.float(), size=new, mode="nearest").long()
    assert torch.equal(resize_label(label, new), expected)


def test_another_number_of_weights_than_outputs_is_refused(pyramid: tuple[list[Tensor], Tensor], refused) -> None:
    outputs, label = pyramid
    with refused("weights", got=(0.5, 0.5)):
        DeepSupervisionLoss(CrossEntropyLoss(), weights=[1, 1])(outputs, label)
