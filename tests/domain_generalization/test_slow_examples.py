"""Slow is, class by class, the cluster of outputs that costs more; a class that cannot be split says why."""

import pytest
import torch
from torch import Tensor

from uumamba.domain_generalization import Answers, find_slow, segmentation_answers


def answers_of(vectors: Tensor, losses: Tensor, groups: Tensor, *, group_count: int | None = None) -> Answers:
    count = int(groups.max()) + 1 if group_count is None else group_count
    return Answers(vectors, losses, groups, 0.5, "the data", count, "probabilities")


def two_sorts(*, seed: int = 0, classes: int = 6) -> tuple[Answers, set[int]]:
    """In every class a larger cluster of outputs and a smaller one; whether it is the slow one alternates."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(classes).repeat_interleave(30)[torch.randperm(30 * classes, generator=generator)]
    small = torch.rand(len(groups), generator=generator) < 0.25
    vectors = 0.05 * torch.randn(len(groups), 3, generator=generator) + small[:, None] * torch.tensor([1.0, -1.0, 0.0])
    is_slow = small == (groups % 2 == 0)
    losses = is_slow + torch.rand(len(groups), generator=generator)
    return answers_of(vectors, losses, groups), set(is_slow.nonzero()[:, 0].tolist())


def test_the_costlier_cluster_of_each_class_is_slow_whichever_is_larger() -> None:
    answers, slow = two_sorts()
    found = find_slow(answers)
    assert set(found.slow) == slow
    assert list(found.slow) == sorted(slow)
    assert (found.size, found.fingerprint, found.settings) == (180, "the data", {"outputs": "probabilities"})
    for split in found.groups:
        members = [place for place in range(180) if answers.groups[place] == split.group]
        losses = torch.tensor([float(answers.losses[place]) for place in members if place in slow])
        assert (split.size, split.slow, split.note) == (30, len(losses), "")
        assert split.slow_loss == pytest.approx(float(losses.mean()), rel=1e-6)
        assert split.fast_loss is not None
        assert split.fast_loss < split.slow_loss


def test_the_clusters_of_overlapping_outputs_are_scikit_learn_s() -> None:
    sklearn = pytest.importorskip("sklearn.cluster")
    generator = torch.Generator().manual_seed(5)
    groups = torch.randint(3, (240,), generator=generator)
    vectors = (2 * torch.randn(240, 3, generator=generator) + 3 * torch.eye(3)[groups]).softmax(1)
    losses = -vectors[range(240), groups].log()
    expected = set()
    for group in range(3):
        members = (groups == group).nonzero()[:, 0]
        labels = torch.from_numpy(sklearn.KMeans(2, n_init=20, random_state=0).fit_predict(vectors[members].numpy()))
        slow = max((0, 1), key=lambda label: float(losses[members][labels == label].mean()))
        expected |= set(members[labels == slow].tolist())
    assert set(find_slow(answers_of(vectors, losses, groups)).slow) == expected


def test_another_order_of_the_data_names_the_same_examples() -> None:
    answers, slow = two_sorts(seed=2)
    order = torch.randperm(180, generator=torch.Generator().manual_seed(9))
    turned = answers_of(answers.vectors[order], answers.losses[order], answers.groups[order])
    assert {int(order[place]) for place in find_slow(turned).slow} == slow


def test_a_class_is_split_whatever_the_others_do() -> None:
    answers, _ = two_sorts(seed=3)
    alone = answers.groups == 4
    whole = {place for place in find_slow(answers).slow if alone[place]}
    part = find_slow(answers_of(answers.vectors[alone], answers.losses[alone], answers.groups[alone], group_count=6))
    assert {int(alone.nonzero()[place]) for place in part.slow} == whole


def test_a_class_that_cannot_be_split_has_no_slow_example_and_says_why() -> None:
    vectors = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.5, 0.5 + 1e-7], [0.5, 0.5], [0.1, 0.9], [0.9, 0.1]])
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 6.0])
    groups = torch.tensor([0, 0, 1, 1, 1, 3, 3])
    vectors, losses, groups = (torch.cat([each, each[:1]]) for each in (vectors, losses, groups))
    groups[-1] = 4
    found = find_slow(answers_of(vectors, losses, groups))
    assert found.slow == (1,)
    assert [split.note for split in found.groups] == [
        "",
        "all outputs are equal",
        "no example",
        "both clusters have the same loss",
        "one example cannot be split",
    ]
    assert [(split.size, split.slow) for split in found.groups] == [(2, 1), (3, 0), (0, 0), (2, 0), (1, 0)]
    assert [split.fast_loss for split in found.groups] == [1.0, 4.0, None, 6.0, 1.0]


def test_cases_that_are_segmented_badly_are_slow_in_each_phase() -> None:
    generator = torch.Generator().manual_seed(4)
    label = torch.zeros(24, 1, 12, 12, dtype=torch.long)
    for unit, side in zip(label[:, 0], torch.randint(5, 8, (24,), generator=generator).tolist(), strict=True):
        unit[2 : 2 + side, 3 : 3 + side] = 1
    faint = torch.arange(24) % 5 == 2
    contrast = torch.where(faint, 0.45, 1.0)[:, None, None, None]
    image = contrast * label + 0.05 * torch.randn(label.shape, generator=generator)

    def threshold(image: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(image), 20 * (image - 0.5)], dim=1)

    phase = [place % 2 for place in range(24)]
    answers = segmentation_answers(threshold, [(image[:9], label[:9]), (image[9:], label[9:])], groups=phase)
    found = find_slow(answers)
    assert found.slow == tuple(faint.nonzero()[:, 0].tolist())
    assert [split.size for split in found.groups] == [12, 12]
    assert found.settings == {"outputs": "segmentation"}


@pytest.mark.parametrize("where", ["vectors", "losses"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_are_refused_by_name(where: str, value: float) -> None:
    answers, _ = two_sorts()
    getattr(answers, where)[17] = value
    complaint = "the outputs of 1 of 180 examples are not finite, the first is example 17: either its image holds NaN"
    with pytest.raises(ValueError, match=complaint):
        find_slow(answers)


def test_no_example_at_all_is_refused() -> None:
    nothing = answers_of(torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=torch.long), group_count=2)
    with pytest.raises(ValueError, match="there is no example to look for slow ones among"):
        find_slow(nothing)
