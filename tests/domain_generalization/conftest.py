"""Gradients of a linear head and UDIM's terms, by their definitions."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from torch.func import grad, vmap
from torch.nn import functional as F

Gradients = dict[str, Tensor]


def _gradients_by_definition(head: Any, features: Tensor, label: Tensor) -> Gradients:
    params = {name: getattr(head, name) for name in ("weight", "bias") if getattr(head, name) is not None}
    params["weight"] = params["weight"].flatten(1)

    def loss(params: Gradients, sample: Tensor, own_label: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(sample, params["weight"], params.get("bias")), own_label)

    return vmap(grad(loss), in_dims=(None, 0, 0))(params, features, label)


def _terms_by_definition(source: Gradients, target: Gradients) -> tuple[Tensor, Tensor]:
    s, t = ([each.flatten(1) for each in gradients.values()] for gradients in (source, target))
    norm = sum(each.square().sum(1).mean() / each.shape[1] for each in t)
    mean = [each.mean(0) for each in s]
    v_s, v_t = (
        [(each - mu).square().mean(0) for each, mu in zip(gradients, mean, strict=True)] for gradients in (s, t)
    )
    squares = [(a - (a + b) / 2).square() + (b - (a + b) / 2).square() for a, b in zip(v_s, v_t, strict=True)]
    return sum(each.sum() for each in squares) / sum(each.numel() for each in squares) / 2, norm


@pytest.fixture(scope="session")
def gradients_by_definition() -> Callable[..., Gradients]:
    """Per-sample gradients ``(samples, *shape)`` of the cross entropy in a head's parameters, by torch.func."""
    return _gradients_by_definition


@pytest.fixture(scope="session")
def terms_by_definition() -> Callable[..., tuple[Tensor, Tensor]]:
    """Variance gap and gradient norm of two sets of per-sample gradients, as in the paper's code."""
    return _terms_by_definition
