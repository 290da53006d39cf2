"""The two terms equal their definitions, and nothing in them is detached."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from uumamba.domain_generalization import LinearHeadGradients, StackedGradients, gradient_norm, variance_gap


def by_definition(source: Tensor, target: Tensor) -> Tensor:
    """The gap of rows of gradients, as the paper's code has it."""
    mu = source.mean(0)
    v_s, v_t = (source - mu).pow(2).mean(0), (target - mu).pow(2).mean(0)
    middle = (v_s + v_t) / 2
    return ((v_s - middle).pow(2).mean() + (v_t - middle).pow(2).mean()) / 2


def rows(gradients: LinearHeadGradients) -> Tensor:
    return torch.cat([each.flatten(1) for each in gradients.per_sample().values()], 1)


@pytest.fixture
def pair() -> Callable[..., tuple[LinearHeadGradients, LinearHeadGradients]]:
    """Gradients of two sets of samples, of one network with the features as its only numbers."""

    def make(features: Tensor, moved: Tensor) -> tuple[LinearHeadGradients, LinearHeadGradients]:
        weight = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
        label = torch.arange(len(features)) % 4
        source, target = (LinearHeadGradients.of(each @ weight.T, each, label) for each in (features, moved))
        return source, target

    return make


@pytest.fixture
def features() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(9, 3, dtype=torch.float64), 1 + 2 * torch.randn(9, 3, dtype=torch.float64)


def test_the_gap_equals_its_definition_and_so_does_its_gradient(
    pair: Callable[..., tuple[LinearHeadGradients, LinearHeadGradients]], features: tuple[Tensor, Tensor]
) -> None:
    x, moved = (each.requires_grad_() for each in features)
    source, target = pair(x, moved)
    found, expected = variance_gap(source, target), by_definition(rows(source), rows(target))
    torch.testing.assert_close(found, expected)
    # Detaching the source's variance or the mean would change the first of both gradients.
    for own, other in zip(
        torch.autograd.grad(found, [x, moved], retain_graph=True),
        torch.autograd.grad(expected, [x, moved]),
        strict=True,
    ):
        torch.testing.assert_close(own, other)


def test_equal_sets_have_no_gap(
    pair: Callable[..., tuple[LinearHeadGradients, LinearHeadGradients]], features: tuple[Tensor, Tensor]
) -> None:
    assert float(variance_gap(*pair(features[0], features[0]))) == 0


def test_a_shift_of_the_mean_counts_as_variance_about_the_source() -> None:
    # Source 0 and 2: mean 1, variance 1. Target 10 and 12: its own variance is 1 too, about 1 it is (81 + 121) / 2.
    source, target = (StackedGradients({"w": torch.tensor(v)}) for v in ([[0.0], [2.0]], [[10.0], [12.0]]))
    assert float(variance_gap(source, target)) == (101 - 1) ** 2 / 4


def test_the_gradient_norm_divides_each_tensor_by_its_own_entries() -> None:
    # One sample, e = (-1/2, 1/2), h = (3, 4): ||G_W||^2 = 1/2 * 25 over 4 entries, ||G_b||^2 = 1/2 over 2.
    found = LinearHeadGradients.of(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
    assert float(gradient_norm(found)) == 12.5 / 4 + 0.5 / 2


def test_samples_in_another_order_change_nothing(
    pair: Callable[..., tuple[LinearHeadGradients, LinearHeadGradients]], features: tuple[Tensor, Tensor]
) -> None:
    source, target = pair(*features)
    order = torch.randperm(9)
    turned = LinearHeadGradients(target.errors[order], target.features[order])
    torch.testing.assert_close(variance_gap(source, turned), variance_gap(source, target))
    torch.testing.assert_close(gradient_norm(turned), gradient_norm(target))
