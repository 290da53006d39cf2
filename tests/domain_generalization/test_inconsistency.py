"""Closed-form gradients equal torch.func's; both terms equal their definitions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uumamba.domain_generalization import LinearHeadGradients, gradient_norm, variance_gap

SAMPLES, CLASSES, WIDTH = 12, 5, 7
Sets = tuple[nn.Linear, Tensor, Tensor, Tensor]
ByDefinition = Callable[..., Any]


def in_rows(gradients: dict[str, Tensor]) -> Tensor:
    """Gradients ``(samples, entries)``, each row of the weight followed by its bias."""
    parts = [gradients["weight"].flatten(2), *(each[:, :, None] for name, each in gradients.items() if name == "bias")]
    return torch.cat(parts, 2).flatten(1)


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def sets(request: pytest.FixtureRequest) -> Sets:
    """A head, two sets of features and their labels, in float64."""
    head = nn.Linear(WIDTH, CLASSES, bias=request.param).double()
    source, target = torch.randn(2, SAMPLES, WIDTH, dtype=torch.float64)
    return head, source.requires_grad_(), (1 + 2 * target).requires_grad_(), torch.randint(CLASSES, (SAMPLES,))


def closed_form(head: nn.Linear, features: Tensor, label: Tensor) -> LinearHeadGradients:
    return LinearHeadGradients.from_logits(head(features), features, label, bias=head.bias is not None)


def test_the_closed_form_and_its_moments_equal_torch_func(sets: Sets, gradients_by_definition: ByDefinition) -> None:
    head, features, _, label = sets
    expected, found = gradients_by_definition(head, features, label), closed_form(head, features, label)
    torch.testing.assert_close(found.per_sample(), expected)
    torch.testing.assert_close(found.mean(), in_rows(expected).mean(0))
    torch.testing.assert_close(found.second_moment(), in_rows(expected).square().mean(0))


def test_both_terms_and_their_gradients_equal_the_definitions(
    sets: Sets, gradients_by_definition: ByDefinition, terms_by_definition: ByDefinition
) -> None:
    # Detaching the source's variance or the mean would change the gradient in the source's features.
    head, source, target, label = sets
    expected = terms_by_definition(*(gradients_by_definition(head, each, label) for each in (source, target)))
    found = [closed_form(head, each, label) for each in (source, target)]
    for terms in zip((variance_gap(*found), gradient_norm(found[1])), expected, strict=True):
        inputs = [source, target, head.weight]
        torch.testing.assert_close(*terms)
        torch.testing.assert_close(
            *(torch.autograd.grad(term, inputs, retain_graph=True, materialize_grads=True) for term in terms)
        )


def test_a_shift_of_the_mean_counts_as_variance_about_the_source() -> None:
    # Source 0 and 2: mean 1, variance 1. Target 10 and 12: its own variance is 1 too, about 1 it is (81 + 121) / 2.
    source, target = (
        LinearHeadGradients(torch.tensor(errors), torch.ones(2, 1), bias=False)
        for errors in ([[0.0], [2.0]], [[10.0], [12.0]])
    )
    assert variance_gap(source, target) == (101 - 1) ** 2 / 4
    assert variance_gap(source, source) == 0


def test_the_gradient_norm_divides_each_tensor_by_its_own_entries() -> None:
    # One sample, e = (-1/2, 1/2), h = (3, 4): ||G_W||^2 = 1/2 * 25 over 4 entries, ||G_b||^2 = 1/2 over 2.
    found = LinearHeadGradients.from_logits(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.tensor([0]))
    assert gradient_norm(found) == 12.5 / 4 + 0.5 / 2


def test_moments_of_many_voxels_need_no_gradient_of_each() -> None:
    # All gradients at once would be 5000 x 400 x 800 floats, 6 GiB.
    e, h = torch.zeros(5_000, 400), torch.ones(5_000, 800)
    e[:, 0] = 0.5
    found = LinearHeadGradients(e, h, bias=False)
    assert found.mean().view(400, 800)[0].unique().tolist() == [0.5]


def test_half_precision_is_computed_in_float32() -> None:
    found = LinearHeadGradients.from_logits(
        torch.randn(4, 3).bfloat16(), torch.randn(4, 2).bfloat16(), torch.arange(4) % 3
    )
    assert found.second_moment().dtype == gradient_norm(found).dtype == torch.float32
