"""The weights come back bit for bit, whatever they look like and whatever happens to them between two climbs."""

import pytest
import torch
from torch import Tensor, nn

from uumamba.optim.backup import WeightBackup


def moved_and_restored(backup: WeightBackup, params: list[Tensor]) -> list[Tensor]:
    """Copies of the weights from before a climb that multiplies them by three."""
    before = [param.detach().clone() for param in params]
    with backup.restored_after(params), torch.no_grad():
        for param in params:
            param.mul_(3)
    return before


def some_weights() -> list[Tensor]:
    """Of every shape and order of axes that networks have: empty, scalar, transposed, channels last, two types."""
    torch.manual_seed(0)
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


def test_weights_of_every_layout_come_back_bit_for_bit() -> None:
    weights = some_weights()
    before = moved_and_restored(WeightBackup(), weights)
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


def test_a_buffer_has_its_weights_order_of_axes() -> None:
    weight, backup = nn.Parameter(torch.randn(4, 3, 2, 5).to(memory_format=torch.channels_last)), WeightBackup()
    moved_and_restored(backup, [weight])
    (buffer,) = backup._buffers_of([weight])
    assert buffer.stride() == weight.stride()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_cast_between_two_climbs_comes_back_in_its_new_type(dtype: torch.dtype) -> None:
    net, backup = nn.Linear(5, 3), WeightBackup()
    params: list[Tensor] = list(net.parameters())
    moved_and_restored(backup, params)
    net.to(dtype)
    with torch.no_grad():
        net.weight.add_(torch.rand(3, 5, dtype=torch.float64) * 1e-9)  # what float32 would lose
    before = moved_and_restored(backup, params)
    assert [param.dtype for param in params] == [dtype, dtype]
    assert all(torch.equal(param, old) for param, old in zip(params, before, strict=True))


def test_other_weights_in_the_next_climb_keep_apart_from_those_of_this_one() -> None:
    weights, backup = some_weights(), WeightBackup()
    for chosen in (weights[:4], weights[2:], weights, weights[::2], weights):
        before = moved_and_restored(backup, chosen)
        assert all(torch.equal(weight, old) for weight, old in zip(chosen, before, strict=True))


def test_weights_come_back_from_a_climb_inside_another() -> None:
    weights, backup = some_weights(), WeightBackup()
    before = [weight.detach().clone() for weight in weights]
    with backup.restored_after(weights), torch.no_grad():
        weights[0].add_(1)
        moved_and_restored(WeightBackup(), weights)
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
