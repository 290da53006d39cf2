"""UDIM where layers are computed again in the backward pass, with what the network holds by then."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from uumamba.domain_generalization import UDIM, InputPerturbation
from uumamba.optim import SAM, Plain
from uumamba.runtime.errors import UsageError

WAYS = [True, "finite_difference", False]
SGD = partial(torch.optim.SGD, lr=0.1)


class Net(nn.Module):
    """A block that is computed again, or not, before a head."""

    def __init__(self, *, again: bool, reentrant: bool = False, norms_alone: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first = nn.Linear(5, 8)
        inner = [nn.Tanh(), nn.LayerNorm(8)] if norms_alone else [nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh()]
        self.block, self.head = nn.Sequential(*inner), nn.Linear(8, 3)
        self.again, self.reentrant = again, reentrant
        if norms_alone:
            self.first.requires_grad_(False)
            self.head.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = checkpoint(self.block, x, use_reentrant=self.reentrant) if self.again else self.block(x)
        return self.head(torch.tanh(x))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])


def udim_of(net: nn.Module, **options: Any) -> UDIM:
    return UDIM(net, F.cross_entropy, InputPerturbation(1.0), **({"rho": 1.0} | options))


@pytest.mark.parametrize("norms_alone", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_images_move_as_without_checkpointing(batch: tuple[Tensor, Tensor], way: Any, norms_alone: bool) -> None:
    found, expected = (
        udim_of(Net(again=again, norms_alone=norms_alone), second_order=way).perturbed(*batch) - batch[0]
        for again in (True, False)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", WAYS)
def test_the_ascent_leaves_no_trace_in_buffers_and_weights(batch: tuple[Tensor, Tensor], way: Any) -> None:
    net = Net(again=True)
    held = [*net.parameters(), *net.buffers()]
    values = [each.clone() for each in held]
    udim_of(net, second_order=way).perturbed(*batch)
    for now, before, value in zip([*net.parameters(), *net.buffers()], held, values, strict=True):
        assert now is before
        assert torch.equal(now, value)


@pytest.mark.parametrize("make", [Plain, SAM])
def test_an_optimizer_that_knows_the_network_leaves_no_trace_in_its_running_statistics(
    batch: tuple[Tensor, Tensor], make: Any
) -> None:
    found = []
    for weight in (1.0, 0.0):
        net = Net(again=True)
        optimizer = make(net.parameters(), SGD, net=net)
        added = udim_of(net, lambda1=weight, lambda2=weight).at_weights(*batch)
        optimizer.step(lambda net=net: F.cross_entropy(net(batch[0]), batch[1]), at_weights=added)
        found.append(net)
    assert all(torch.equal(a, b) for a, b in zip(*(net.buffers() for net in found), strict=True))
    assert not torch.equal(*(net.head.weight for net in found))


def test_a_step_is_that_without_checkpointing(batch: tuple[Tensor, Tensor]) -> None:
    nets = [Net(again=again) for again in (True, False)]
    for net in nets:
        optimizer = SAM(net.parameters(), SGD, net=net)
        optimizer.step(
            lambda net=net: F.cross_entropy(net(batch[0]), batch[1]), at_weights=udim_of(net).at_weights(*batch)
        )
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("way", WAYS)
def test_an_error_on_the_way_back_leaves_the_network_whole(batch: tuple[Tensor, Tensor], way: Any) -> None:
    net = Net(again=True)
    held = [*net.parameters(), *net.buffers()]
    passes = []

    def loss(logits: Tensor, label: Tensor) -> Tensor:
        passes.append(label)
        if len(passes) == (2 if way == "finite_difference" else 1):
            logits.register_hook(_fail)
        return F.cross_entropy(logits, label)

    with pytest.raises(KeyError, match="on the way back"):
        UDIM(net, loss, InputPerturbation(1.0), second_order=way).perturbed(*batch)
    assert all(now is before for now, before in zip([*net.parameters(), *net.buffers()], held, strict=True))
    assert not net.block[1].num_batches_tracked


def _fail(_: Tensor) -> None:
    raise KeyError("on the way back")


@pytest.mark.parametrize("way", WAYS)
def test_reentrant_checkpointing_is_refused_with_the_cure(batch: tuple[Tensor, Tensor], way: Any) -> None:
    net = Net(again=True, reentrant=True)
    with pytest.raises(UsageError, match=r"reentrant activation checkpointing.* pass use_reentrant=False"):
        udim_of(net, second_order=way).perturbed(*batch)
