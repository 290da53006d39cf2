"""Membership attacks against hand-computed tables and scikit-learn."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, roc_curve
from torch import nn

from uumamba.unlearning import (
    attack_by_loss,
    attack_by_score,
    collect_losses,
    likelihood_ratio_scores,
    logit_confidence,
)


def test_the_attack_by_loss_is_a_hand_computed_table() -> None:
    # t      0.1  0.2  0.3  0.4  0.6  0.9
    # TPR    1/4  2/4  2/4  3/4  3/4  4/4
    # FPR     0    0   1/3  1/3  2/3   1      (0.9 is of both)
    result = attack_by_loss([0.1, 0.2, 0.4, 0.9], [0.3, 0.6, 0.9])
    assert result.advantage == pytest.approx(1 / 2)
    assert result.auc == pytest.approx((3 + 3 + 2 + 0.5) / 12)  # ordered pairs, the equal one half
    assert (result.members, result.non_members) == (4, 3)


@pytest.mark.parametrize("decimals", [1, 8])
def test_area_and_advantage_equal_scikit_learn(decimals: int) -> None:
    generator = np.random.default_rng(0)
    members, others = (generator.normal(shift, size=n).round(decimals) for shift, n in ((0.7, 60), (0.0, 45)))
    truth, scores = np.repeat([1, 0], [60, 45]), np.concatenate([members, others])
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    result = attack_by_score(members, torch.from_numpy(others), draws=10)
    assert result.auc == pytest.approx(roc_auc_score(truth, scores))
    assert result.advantage == pytest.approx((true - false).max())


def test_members_of_higher_loss_give_no_advantage_and_infinite_losses_have_a_rank() -> None:
    result = attack_by_loss([2.0, math.inf], [0.0, 1.0], draws=5)
    assert (result.advantage, result.auc) == (0, 0)
    perfect = attack_by_loss([0.0], [math.inf])
    assert (perfect.advantage, perfect.auc) == (1, 1)


def test_the_interval_covers_the_true_area() -> None:
    area = norm.cdf(1 / math.sqrt(2))
    generator, covered = np.random.default_rng(1), 0
    for seed in range(60):
        members, others = generator.normal(1, size=80), generator.normal(0, size=80)
        low, high = attack_by_score(members, others, draws=200, seed=seed).auc_interval
        covered += low <= area <= high
    assert covered >= 50  # 57 expected


def test_groups_are_drawn_whole() -> None:
    generator = np.random.default_rng(2)
    level = np.repeat(generator.normal(size=(2, 10)), 20, axis=1)  # 10 patients of 20 equal samples
    groups = np.repeat([f"patient {index}" for index in range(10)], 20)
    whole = attack_by_score(*level, member_groups=groups, non_member_groups=groups.tolist())
    alone = attack_by_score(*level[:, ::20])
    assert (whole.advantage, whole.auc) == pytest.approx((alone.advantage, alone.auc))
    widths = [
        high - low for low, high in (whole.auc_interval, alone.auc_interval, attack_by_score(*level).auc_interval)
    ]
    assert widths[0] == pytest.approx(widths[1], rel=0.15)
    assert widths[2] < 0.5 * widths[0]  # samples drawn one by one look like more patients
    numbers = torch.arange(10).repeat_interleave(20)
    assert attack_by_score(*level, member_groups=numbers, non_member_groups=numbers) == whole


def test_a_single_group_has_no_interval() -> None:
    result = attack_by_score([1.0, 2.0], [0.0, 3.0], member_groups=["a", "a"])
    assert all(map(math.isnan, (*result.advantage_interval, *result.auc_interval)))


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(3).normal(size=(2, 30))
    first, second, other = (attack_by_score(*values, draws=50, seed=seed).auc_interval for seed in (0, 0, 1))
    assert first == second != other


@pytest.mark.parametrize(
    ("members", "others", "options", "key"),
    [
        ([], [1.0], {}, "member_losses"),
        ([1.0], [], {}, "non_member_losses"),
        ([1.0, math.nan], [1.0], {}, "member_losses"),
        (torch.zeros(2, 2), [1.0], {}, "member_losses"),
        ([1.0, 2.0], [1.0], {"member_groups": ["a"]}, "member_groups"),
        ([1.0], [1.0], {"confidence": 1.0}, "confidence"),
        ([1.0], [1.0], {"draws": 0}, "draws"),
    ],
)
def test_wrong_values_are_refused(members: Any, others: Any, options: Any, key: str, refused: Callable) -> None:
    with refused(key):
        attack_by_loss(members, others, **options)


def test_the_logit_confidence_is_the_logit_of_the_probability() -> None:
    logits, label = torch.randn(20, 5).double(), torch.randint(0, 5, (20,))
    p = logits.softmax(1).gather(1, label[:, None])[:, 0]
    torch.testing.assert_close(logit_confidence(logits, label), torch.logit(p))
    assert logit_confidence(torch.tensor([[500.0, 0.0]]), torch.tensor([0])).item() == 500  # where p rounds to 1


def test_confidences_of_a_data_set_are_collected_like_losses() -> None:
    image, label = torch.randn(6, 3), torch.randint(0, 3, (6,))
    found = collect_losses(
        nn.Identity(), [(image[:4], label[:4]), (image[4:], label[4:])], per_sample_loss=logit_confidence
    )
    assert torch.equal(found, logit_confidence(image, label))


def make_shadows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """64 shadow models, 40 samples, and a target that trained on the first 20."""
    generator = torch.Generator().manual_seed(0)
    hardness = 3 * torch.randn(40, generator=generator).double()
    is_member = torch.rand(64, 40, generator=generator) < 0.5
    noise = torch.randn(65, 40, generator=generator).double()
    target = torch.arange(40) < 20
    confidence = hardness + 2.0 * torch.cat([is_member, target[None]]) + noise
    return confidence[-1], confidence[:-1], is_member, target


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("variance", ["sample", "shared"])
def test_the_likelihood_ratio_finds_members_that_a_threshold_does_not(mode: Any, variance: Any) -> None:
    confidence, shadow, is_member, target = make_shadows()
    scores = likelihood_ratio_scores(confidence, shadow, is_member, mode=mode, variance=variance)
    ratio = attack_by_score(scores[target], scores[~target], draws=1).auc
    assert ratio > 0.85
    assert ratio > attack_by_score(confidence[target], confidence[~target], draws=1).auc + 0.1


def test_the_likelihood_ratio_is_that_of_fitted_normal_distributions() -> None:
    confidence, shadow, is_member, _ = make_shadows()
    online = likelihood_ratio_scores(confidence, shadow, is_member)
    offline = likelihood_ratio_scores(confidence, shadow, is_member, mode="offline")
    for index in range(40):
        inside, out = (shadow[side[:, index], index].numpy() for side in (is_member, ~is_member))
        fits = [norm(each.mean(), each.std(ddof=1)) for each in (inside, out)]
        expected = fits[0].logpdf(confidence[index]) - fits[1].logpdf(confidence[index])
        assert online[index].item() == pytest.approx(expected)
        assert norm.cdf(offline[index]) == pytest.approx(fits[1].cdf(confidence[index]))


def test_the_offline_score_needs_no_shadow_model_with_the_sample(refused: Callable) -> None:
    confidence, shadow, is_member, _ = make_shadows()
    is_member[:, 3] = False
    assert likelihood_ratio_scores(confidence, shadow, is_member, mode="offline").isfinite().all()
    with refused("is_member", "0 shadow models with sample 3 in their training set"):
        likelihood_ratio_scores(confidence, shadow, is_member)
    with refused("is_member", "0 shadow models with sample 3 out of their training set"):
        is_member[:, 3] = True
        likelihood_ratio_scores(confidence, shadow, is_member, mode="offline")


def test_equal_confidences_give_a_finite_score() -> None:
    scores = likelihood_ratio_scores(torch.zeros(1), torch.zeros(4, 1), torch.tensor([[1], [1], [0], [0]]))
    assert scores.item() == 0


def test_shapes_that_do_not_fit_are_refused(refused: Callable) -> None:
    confidence, shadow, is_member, _ = make_shadows()
    with refused("shadow_confidence"):
        likelihood_ratio_scores(confidence, shadow.T, is_member)
    with refused("confidence"):
        likelihood_ratio_scores(confidence * math.nan, shadow, is_member)
    with refused("mode"):
        likelihood_ratio_scores(confidence, shadow, is_member, mode="both")
    with refused("logits"):
        logit_confidence(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long))
