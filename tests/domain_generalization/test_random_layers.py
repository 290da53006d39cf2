"""Contract of layers with random changes: identity, rate, generators, no state."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from uumamba.domain_generalization import MixStyle, RandConv

pytestmark = pytest.mark.parametrize("layer", [MixStyle, RandConv])


@pytest.mark.parametrize("shape", [(6, 3, 9), (6, 3, 9, 8), (6, 3, 9, 8, 7)])
def test_a_layer_keeps_the_shape_and_is_the_identity_in_evaluation_mode(layer: Any, shape: Any) -> None:
    batch = torch.randn(shape)
    assert layer(p=1.0).eval()(batch) is batch
    assert layer(p=0.0)(batch) is batch
    assert layer(p=1.0)(batch).shape == shape


def test_a_layer_changes_batches_with_its_probability(layer: Any) -> None:
    batch, changing = torch.randn(4, 2, 8), layer(p=0.3, generator=torch.Generator().manual_seed(0))
    changed = sum(changing(batch) is not batch for _ in range(1000))
    assert abs(changed - 300) < 60  # four standard deviations


def test_equal_generators_give_equal_batches_and_keep_the_global_generator(layer: Any) -> None:
    batch, state = torch.randn(6, 3, 4, 4), torch.get_rng_state()
    first, second = (layer(generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert all(torch.equal(first(batch), second(batch)) for _ in range(6))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(copy.deepcopy(first)(batch), first(batch))


def test_without_a_generator_draws_depend_on_torchs_seed(layer: Any) -> None:
    batch, found = torch.randn(6, 3, 8, 8), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(layer(p=1.0)(batch))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_layer_keeps_the_type_is_differentiable_and_has_no_state(layer: Any, dtype: torch.dtype) -> None:
    batch = torch.randn(2, 1, 8, 8, dtype=dtype, requires_grad=True)
    net = nn.Sequential(layer(p=1.0))
    changed = net(batch)
    changed.sum().backward()
    assert changed.dtype == dtype
    assert batch.grad.isfinite().all()
    assert not net.state_dict()
