"""Weights, running statistics and random numbers after a second pass."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.optim import frozen_running_statistics
from uumamba.optim.restore import SharedDraws, WeightBackup


def check_restored(backup: WeightBackup, params: list[Tensor]) -> None:
    before = [param.detach().clone() for param in params]
    with pytest.raises(RuntimeError, match="inside"), backup.restore_after(params), torch.no_grad():
        for param in params:
            param.mul_(3)
        raise RuntimeError("inside")
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))


def some_weights() -> list[Tensor]:
    """Make weights of every shape, axis order and type of networks."""
    return [
        nn.Parameter(torch.randn(7, 5)),
        nn.Parameter(torch.randn(())),
        nn.Parameter(torch.randn(0, 3)),
        nn.Parameter(torch.randn(6, 4).t()),
        nn.Parameter(torch.randn(4, 3, 2, 5).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.randn(9, dtype=torch.float64)),
        nn.Parameter(torch.randn(9, dtype=torch.bfloat16)),
        nn.Parameter(torch.randn(3, 8)[:, ::2]),
    ]


def test_weights_of_every_layout_are_restored_bit_for_bit_in_any_selection() -> None:
    weights, backup = some_weights(), WeightBackup()
    for chosen in (weights, weights[:4], weights[2:], weights, weights[::2]):
        check_restored(backup, chosen)


def test_buffers_are_allocated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, backup, allocate, calls = some_weights(), WeightBackup(), torch.empty, []
    monkeypatch.setattr(torch, "empty", lambda *args, **options: calls.append(args) or allocate(*args, **options))
    check_restored(backup, weights)
    assert len(calls) == 3, "one piece of memory per type"
    check_restored(backup, weights)
    assert len(calls) == 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_cast_between_two_steps_is_restored_in_its_new_type(dtype: torch.dtype) -> None:
    net, backup = nn.Linear(5, 3), WeightBackup()
    params: list[Tensor] = list(net.parameters())
    check_restored(backup, params)
    net.to(dtype)
    with torch.no_grad():
        net.weight.add_(torch.rand(3, 5, dtype=torch.float64) * 1e-9)  # what float32 would lose
    check_restored(backup, params)
    assert [param.dtype for param in params] == [dtype, dtype]


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm2d(3),
    "batch, cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "instance, tracking": lambda: nn.InstanceNorm2d(3, track_running_stats=True),
    "instance": lambda: nn.InstanceNorm2d(3),
}


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_frozen_statistics_stay_also_nested_after_an_error_and_a_batch_that_is_not_finite(make: Any) -> None:
    norm, reference, x = make(), make(), torch.randn(4, 3, 5, 5)
    with pytest.raises(RuntimeError, match="inside"), frozen_running_statistics(norm):
        found = norm(x)
        with frozen_running_statistics(norm):
            norm(torch.full_like(x, float("nan")))
        assert torch.equal(norm(x), found)
        raise RuntimeError("inside")
    for before, expected in zip(norm.buffers(), reference.buffers(), strict=True):
        assert torch.equal(before, expected)
    assert torch.equal(norm(x), reference(x)), "inside and outside it normalises as in training"
    assert torch.equal(norm(x), found)
    reference(x)
    for after, expected in zip(norm.buffers(), reference.buffers(), strict=True):
        assert torch.equal(after, expected)


@pytest.mark.parametrize("name", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_a_repeated_pass_draws_the_same_numbers_and_restores_the_generators(name: str) -> None:
    device = torch.device(name)
    draws, ones = SharedDraws(lambda: {device}), torch.ones(1000, device=device)
    torch.manual_seed(0)
    expected = [F.dropout(ones), torch.randperm(7), torch.rand(2, device=device), torch.rand(2)]
    torch.manual_seed(0)
    with draws.record():
        assert torch.equal(F.dropout(ones), expected[0])
        assert torch.equal(torch.randperm(7), expected[1])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="inside"), draws.repeat():
            assert torch.equal(F.dropout(ones), expected[0])
            assert torch.equal(torch.randperm(7), expected[1])
            torch.rand(100, device=device)
            raise RuntimeError("inside")
    assert torch.equal(torch.rand(2, device=device), expected[2])
    assert torch.equal(torch.rand(2), expected[3])
