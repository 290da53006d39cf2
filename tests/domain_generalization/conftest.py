"""Gradients of a linear head and UDIM's terms, by their definitions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
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
    s, t = (torch.cat([each.flatten(1) for each in gradients.values()], 1) for gradients in (source, target))
    v_s, v_t = ((each - s.mean(0)).square().mean(0) for each in (s, t))
    middle = (v_s + v_t) / 2
    norm = sum(each.flatten(1).square().sum(1).mean() / each[0].numel() for each in target.values())
    return ((v_s - middle).square().mean() + (v_t - middle).square().mean()) / 2, norm


@pytest.fixture(scope="session")
def gradients_by_definition() -> Callable[..., Gradients]:
    """Per-sample gradients of the cross entropy in a head, by torch.func."""
    return _gradients_by_definition


@pytest.fixture(scope="session")
def terms_by_definition() -> Callable[..., tuple[Tensor, Tensor]]:
    """Variance gap and gradient norm, as in the paper's code."""
    return _terms_by_definition
