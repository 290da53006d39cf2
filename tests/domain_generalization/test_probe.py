"""Network outputs in evaluation mode, and the fingerprint of the data."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.domain_generalization import find_slow, fingerprint_batches, probe_classification, probe_segmentation


def images_and_labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(11, 4, generator=generator), torch.randint(3, (11,), generator=generator)


def in_batches(images: Tensor, labels: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(images.split(size), labels.split(size), strict=True))


def test_class_outputs_are_softmax_cross_entropy_and_accuracy() -> None:
    images, labels = images_and_labels()
    net = nn.Linear(4, 3)
    logits = net(images).detach()
    found = probe_classification(net, in_batches(images, labels, 4))
    torch.testing.assert_close(found.vectors, logits.exp() / logits.exp().sum(1, keepdim=True))
    torch.testing.assert_close(found.losses, -found.vectors[range(11), labels].log())
    assert torch.equal(found.groups, labels)
    assert found.error == pytest.approx(sum(int(a != b) for a, b in zip(logits.argmax(1), labels, strict=True)) / 11)
    assert (found.group_count, found.kind) == (3, "probabilities")
    torch.testing.assert_close(probe_classification(net, [(images, labels)], space="logits").vectors, logits)


@pytest.mark.parametrize("size", [1, 4, 11])
def test_batches_of_any_size_and_kind_give_the_same_outputs(size: int) -> None:
    images, labels = images_and_labels()
    net = nn.Linear(4, 3)
    whole = probe_classification(net, [(images, labels)])
    named = [{"image": image, "label": label} for image, label in in_batches(images, labels, size)]
    for batches in (
        named,
        in_batches(images, labels, size),
        [(*each, "more") for each in in_batches(images, labels, size)],
    ):
        found = probe_classification(net, batches)
        torch.testing.assert_close(found.vectors, whole.vectors)
        assert found.fingerprint == whole.fingerprint == fingerprint_batches(batches)


def test_another_order_value_type_or_label_is_another_fingerprint() -> None:
    images, labels = images_and_labels()
    changed_images = images.clone()
    changed_images[7, 2] += 1e-6
    relabelled = labels.clone()
    relabelled[3] = (relabelled[3] + 1) % 3
    variants = [
        (images, labels),
        (images.flip(0), labels.flip(0)),
        (changed_images, labels),
        (images.double(), labels),
        (images[:, :, None], labels),
        (images, relabelled),
        (images[:10], labels[:10]),
    ]
    assert len({fingerprint_batches([each]) for each in variants}) == len(variants)


def test_a_network_runs_in_evaluation_mode_and_keeps_its_modes_and_statistics() -> None:
    images, labels = images_and_labels()
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).train()
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = (probe_classification(net, in_batches(images, labels, 5)) for _ in range(2))
    assert torch.equal(first.vectors, second.vectors)
    assert not first.vectors.requires_grad
    assert [part.training for part in net] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


CLASSIFIED, SEGMENTED = torch.rand(2, 3), torch.rand(2, 3, 4)


@pytest.mark.parametrize(
    ("probe", "batch", "key"),
    [
        (probe_classification, (CLASSIFIED, torch.tensor([0, 3])), "label"),
        (probe_classification, (CLASSIFIED, torch.tensor([0, -1])), "label"),
        (probe_classification, (CLASSIFIED, torch.tensor([0.0, 1.0])), "label"),
        (probe_classification, (CLASSIFIED, torch.tensor([0])), "label"),
        (probe_classification, (CLASSIFIED[:, :1], torch.tensor([0, 0])), "net"),
        (probe_classification, (SEGMENTED, torch.zeros(2, 1, 4)), "net"),
        (probe_classification, {"x": CLASSIFIED, "label": torch.tensor([0, 1])}, "batches"),
        (probe_classification, (CLASSIFIED,), "batches"),
        (partial(probe_classification, space="logit"), (CLASSIFIED, torch.tensor([0, 1])), "space"),
        (probe_segmentation, (CLASSIFIED, torch.tensor([0, 1])), "net"),
        (probe_segmentation, (SEGMENTED, torch.zeros(2, 4).long()), "net"),
        (probe_segmentation, (SEGMENTED, torch.full((2, 1, 4), 3)), "label"),
        (partial(probe_segmentation, ignore_label=255), (SEGMENTED, torch.full((2, 1, 4), 255)), "label"),
        (partial(probe_segmentation, groups=[0]), (SEGMENTED, torch.zeros(2, 1, 4).long()), "groups"),
        (partial(probe_segmentation, groups=[0, -1]), (SEGMENTED, torch.zeros(2, 1, 4).long()), "groups"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_gradients_stay_on(
    probe: Any, batch: Any, key: str, refused: Any
) -> None:
    with refused(key):
        probe(nn.Identity(), [batch])
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("probe", [probe_classification, probe_segmentation])
def test_no_batch_and_outputs_without_logits_are_refused(probe: Any, refused: Any) -> None:
    with refused("batches", got="no batch"):
        probe(nn.Identity(), iter([]))
    with refused("net"):
        probe(lambda image: {"out": image}, in_batches(*images_and_labels(), size=4))


def segmented() -> tuple[Tensor, Tensor]:
    """Three units of four voxels; only the last has class 2."""
    label = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 2, 2]]).reshape(3, 1, 2, 2)
    return torch.randn(3, 3, 2, 2, generator=torch.Generator().manual_seed(2)), label


def numbers_by_hand(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (NaN for absent classes) and losses, voxel by voxel."""
    rows, losses = [], []
    for unit, reference in zip(logits.double(), label, strict=True):
        voxels = [(unit[:, y, x].softmax(0), int(reference[0, y, x])) for y in range(2) for x in range(2)]
        entropies, dice = [], []
        for value in range(3):
            own = [-math.log(p[value]) for p, found in voxels if found == value]
            entropies.append(sum(own) / len(own) if own else math.nan)
            overlap = sum(float(p[value]) for p, found in voxels if found == value)
            dice.append((2 * overlap + 1e-5) / (sum(float(p[value]) for p, _ in voxels) + len(own) + 1e-5))
        share = sum(found > 0 for _, found in voxels) / 4
        rows.append([*entropies, *dice[1:], share])
        known = [each for each in entropies if not math.isnan(each)]
        losses.append(sum(known) / len(known) + 1 - (dice[1] + dice[2]) / 2)
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(losses, dtype=torch.float64)


def standardised(columns: Tensor) -> Tensor:
    return (columns - columns.mean(0)) / columns.std(0, correction=0)


def test_numbers_of_segmented_units_equal_those_by_hand() -> None:
    logits, label = segmented()
    columns, losses = numbers_by_hand(logits, label)
    columns[:2, 2] = columns[2, 2]  # units without class 2 take the mean of those with it: here the last one's
    found = probe_segmentation(nn.Identity(), [(logits[:2], label[:2]), (logits[2:], label[2:])])
    expected = standardised(columns)
    expected[:, 2] = 0  # and so it is the same for all
    torch.testing.assert_close(found.vectors, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.losses.double(), losses, rtol=1e-4, atol=1e-5)
    assert found.groups.tolist() == [0, 0, 0]
    assert (found.group_count, found.kind) == (1, "segmentation")


def test_ignored_voxels_count_nowhere() -> None:
    logits, label = segmented()
    wider = torch.cat([logits, torch.randn(3, 3, 2, 2)], dim=3)
    ignored = torch.cat([label, torch.full_like(label, 255)], dim=3)
    batches = [(logits[:1], label[:1]), (wider[1:], ignored[1:])]
    found = probe_segmentation(nn.Identity(), batches, ignore_label=255)
    expected = probe_segmentation(nn.Identity(), [(logits, label)])
    torch.testing.assert_close(found.vectors, expected.vectors)
    torch.testing.assert_close(found.losses, expected.losses)


@pytest.mark.parametrize("place", [0, 2, 3])
def test_a_unit_with_ignored_voxels_only_is_left_out_with_a_warning(place: int) -> None:
    logits, label = segmented()
    unseen = torch.randn(1, 3, 2, 2), torch.full((1, 1, 2, 2), 255)
    batch = tuple(
        torch.cat([each[:place], one, each[place:]]) for each, one in zip((logits, label), unseen, strict=True)
    )
    with pytest.warns(UserWarning, match=rf"\[{place}\]$") as warned:
        found = probe_segmentation(nn.Identity(), [batch], groups=[0, 0, 0, 0], ignore_label=255)
    assert warned[0].filename == __file__
    expected = probe_segmentation(nn.Identity(), [(logits, label)])
    others = [each for each in range(4) if each != place]
    torch.testing.assert_close(found.vectors[others], expected.vectors)
    torch.testing.assert_close(found.losses[others], expected.losses)
    assert found.error == pytest.approx(expected.error)
    assert found.groups.tolist() == [-1 if each == place else 0 for each in range(4)]
    slow = find_slow(found)
    assert slow.slow == tuple(others[each] for each in find_slow(expected).slow)
    assert (slow.size, slow.groups[0].size) == (4, 3)


def test_units_of_different_sizes_and_lists_of_outputs_are_possible() -> None:
    logits, label = segmented()
    doubled = [(F.interpolate(logits[:1], scale_factor=2), F.interpolate(label[:1].float(), scale_factor=2).long())]
    found = probe_segmentation(lambda image: [image, image[..., :1]], [*doubled, (logits[1:], label[1:])])
    torch.testing.assert_close(
        found.vectors, probe_segmentation(nn.Identity(), [(logits, label)]).vectors, rtol=1e-4, atol=1e-4
    )


def test_the_groups_of_units_are_those_of_the_argument() -> None:
    found = probe_segmentation(nn.Identity(), [segmented()], groups=[0, 2, 0])
    assert (found.groups.tolist(), found.group_count) == ([0, 2, 0], 3)
