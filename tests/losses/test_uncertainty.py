import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.losses import CrossEntropyLoss, FocalLoss, SoftDiceLoss, UncertaintyWeightedLoss

Sample = Callable[..., tuple[Tensor, Tensor]]


class Constant(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        return logits.new_tensor(self.value)


@pytest.fixture
def three_terms() -> UncertaintyWeightedLoss:
    return UncertaintyWeightedLoss(
        {"region": SoftDiceLoss(), "distribution": CrossEntropyLoss(), "pixel": FocalLoss(gamma=2.0)}
    )


def total_at(values: list[float], taus: list[float]) -> Tensor:
    loss = UncertaintyWeightedLoss({str(index): Constant(value) for index, value in enumerate(values)})
    with torch.no_grad():
        loss.log_variances.copy_(torch.tensor(taus))
    return loss(torch.zeros(()), torch.zeros(()))


def test_initial_loss_is_half_the_sum_plus_ln_2_per_term(three_terms: UncertaintyWeightedLoss, sample: Sample) -> None:
    logits, label = sample(2, 8, 8)
    terms = [loss(logits, label) for loss in (SoftDiceLoss(), CrossEntropyLoss(), FocalLoss(gamma=2.0))]
    torch.testing.assert_close(three_terms(logits, label), 0.5 * sum(terms) + 3 * math.log(2))


@pytest.mark.parametrize("tau", [-2.0, 0.3, 4.0])
def test_loss_equals_the_formula_in_sigma(tau: float) -> None:
    variance = math.exp(tau)
    expected = 0.5 / variance * 0.7 + math.log(1 + variance)
    assert total_at([0.7], [tau]).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("value", [0.01, 0.1, 0.5, 1.0, 3.0])
def test_variance_of_a_constant_term_converges_to_the_fixed_point(value: float) -> None:
    loss = UncertaintyWeightedLoss({"only": Constant(value)}).double()
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = loss(torch.zeros((), dtype=torch.float64), torch.zeros(()))
        total.backward()
        return total

    optimizer.step(closure)
    expected = (value + math.sqrt(value**2 + 8 * value)) / 4
    assert loss.log_variances.exp().item() == pytest.approx(expected, rel=1e-4)
    assert loss.weights()["only"] == pytest.approx(0.5 / expected, rel=1e-4)


@given(st.lists(st.tuples(st.floats(0, 100, width=32), st.floats(-60, 60, width=32)), min_size=1, max_size=4))
def test_loss_is_never_negative(terms: list[tuple[float, float]]) -> None:
    values, taus = zip(*terms, strict=True)
    assert total_at(list(values), list(taus)) >= 0


def test_state_dict_restores_the_weights(three_terms: UncertaintyWeightedLoss) -> None:
    with torch.no_grad():
        three_terms.log_variances.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    other = UncertaintyWeightedLoss(
        {"region": SoftDiceLoss(), "distribution": CrossEntropyLoss(), "pixel": FocalLoss()}
    )
    other.load_state_dict(three_terms.state_dict())
    assert other.weights() == three_terms.weights()
    assert list(other.weights()) == ["region", "distribution", "pixel"]


def test_last_terms_are_detached_values(three_terms: UncertaintyWeightedLoss, sample: Sample) -> None:
    logits, label = sample(2, 8, 8)
    three_terms(logits, label)
    assert list(three_terms.last_terms) == ["region", "distribution", "pixel"]
    assert all(isinstance(term, Tensor) and not term.requires_grad for term in three_terms.last_terms.values())
    assert three_terms.last_terms["distribution"] == CrossEntropyLoss()(logits, label)


def test_functions_and_modules_are_terms_alike() -> None:
    logits, label = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    functions = UncertaintyWeightedLoss({"a": F.cross_entropy, "b": lambda z, y: F.multi_margin_loss(z, y)})
    modules = UncertaintyWeightedLoss({"a": nn.CrossEntropyLoss(), "b": nn.MultiMarginLoss()})
    torch.testing.assert_close(functions(logits, label), modules(logits, label))


@pytest.mark.parametrize(
    ("losses", "key"),
    [
        ([nn.CrossEntropyLoss()], "losses"),
        ({"a": nn.CrossEntropyLoss}, "losses: a"),
        ({"a": torch.tensor(1.0)}, "losses: a"),
    ],
)
def test_a_list_a_class_and_a_value_are_refused(losses: Any, key: str, refused: Any) -> None:
    with refused(key):
        UncertaintyWeightedLoss(losses)
