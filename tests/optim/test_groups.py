from typing import Any

import pytest
import torch
from torch import nn

from uumamba.optim import norm_layers_only


class ScaleNorm(nn.Module):
    """Custom norm with a scalar and a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(4))


class PreNorm(nn.Module):
    """Module called a norm that also holds a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(4), nn.Linear(4, 4)


NORMS = [
    nn.BatchNorm3d(4),
    nn.SyncBatchNorm(4),
    nn.InstanceNorm2d(4, affine=True),
    nn.LayerNorm([4, 2]),
    nn.GroupNorm(2, 4),
    nn.RMSNorm(4),
    ScaleNorm(),
]


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
def test_every_kind_of_norm_is_found_once_and_nothing_else(norm: nn.Module) -> None:
    pre_norm = PreNorm()
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(norm, nn.PReLU()), pre_norm, nn.Linear(4, 2), norm)
    norms, others = norm_layers_only(net)
    expected = [*norm.parameters(), *pre_norm.norm.parameters()]
    assert list(map(id, norms["params"])) == list(map(id, expected))
    left = {id(param) for param in net.parameters()} - set(map(id, expected))
    assert set(map(id, others["params"])) == left
    assert "perturb" not in norms
    assert others["perturb"] is False


@pytest.mark.parametrize("net", [nn.Linear(2, 2), nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2))])
def test_a_network_without_norm_parameters_is_refused(net: nn.Module, refused: Any) -> None:
    with refused("net", got=type(net).__name__):
        norm_layers_only(net)
