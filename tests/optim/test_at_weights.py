"""Several scalars to add at the unclimbed weights: their gradients added up, one graph at a time."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uumamba.optim import ASAM, MSAM, SAGM, SAM, Plain, SharpnessAware
from uumamba.optim.passes import AtWeights
from uumamba.runtime.errors import UsageError

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
MEMBERS: dict[str, Callable[..., SharpnessAware]] = {
    "Plain": Plain,
    "SAM": partial(SAM, rho=0.3),
    "ASAM": ASAM,
    "MSAM": MSAM,
    "SAGM": partial(SAGM, rho=0.3),
}


def after_steps(
    make: Callable[..., SharpnessAware], added: Callable[[nn.Module], AtWeights | None], **how: Any
) -> list[Tensor]:
    """The weights after three steps."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    optimizer = make(net.parameters(), SGD, net=net, **how)
    for _ in range(3):
        optimizer.step(lambda: (net(x) - x.sum(1, keepdim=True)).square().mean(), at_weights=added(net))
    return [param.detach() for param in net.parameters()]


def squares(net: nn.Module) -> Tensor:
    return sum((param.square().sum() for param in net.parameters()), torch.zeros(()))


def fourth_powers_of_the_first(net: nn.Module) -> Tensor:
    """A scalar that does not reach all of the parameters."""
    return next(net.parameters()).pow(4).sum()


@pytest.mark.parametrize("name", MEMBERS)
def test_one_scalar_in_a_list_is_that_scalar_bit_for_bit(name: str) -> None:
    alone = after_steps(MEMBERS[name], lambda net: lambda: squares(net))
    listed = after_steps(MEMBERS[name], lambda net: [lambda: squares(net)])
    assert all(torch.equal(one, other) for one, other in zip(alone, listed, strict=True))


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", MEMBERS)
def test_several_scalars_are_their_sum(name: str, scaled: bool) -> None:
    how = {"scaler": torch.amp.GradScaler("cpu", init_scale=64.0)} if scaled else {}
    both = after_steps(MEMBERS[name], lambda net: lambda: squares(net) + fourth_powers_of_the_first(net), **how)
    listed = after_steps(
        MEMBERS[name], lambda net: (lambda: fourth_powers_of_the_first(net), lambda: squares(net)), **how
    )
    for one, other in zip(both, listed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_an_empty_list_adds_nothing() -> None:
    nothing, without = after_steps(SAM, lambda net: []), after_steps(SAM, lambda net: None)
    assert all(torch.equal(one, other) for one, other in zip(nothing, without, strict=True))


def test_a_none_in_a_list_adds_nothing_as_one_alone_does() -> None:
    listed = after_steps(SAM, lambda net: [None, lambda: squares(net), None])
    alone = after_steps(SAM, lambda net: lambda: squares(net))
    nothing, without = after_steps(SAM, lambda net: [None, None]), after_steps(SAM, lambda net: None)
    assert all(torch.equal(one, other) for one, other in zip(listed, alone, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(nothing, without, strict=True))


def test_the_graph_of_one_scalar_is_gone_before_the_next_is_computed() -> None:
    weight = nn.Parameter(torch.ones(3))
    alive: list[weakref.ref[Tensor]] = []
    left: list[int] = []

    def scalar() -> Tensor:
        left.append(sum(each() is not None for each in alive))
        doubled = 2 * weight
        alive.append(weakref.ref(doubled))
        return doubled.square().sum()

    Plain([weight], SGD).step(lambda: weight.sum(), at_weights=[scalar, scalar, scalar])
    assert left == [0, 0, 0]


@pytest.mark.parametrize("name", MEMBERS)
def test_a_scalar_of_another_network_is_refused_before_anything_changes(name: str) -> None:
    net, other = nn.Linear(3, 1), nn.Linear(3, 1)
    optimizer = MEMBERS[name](net.parameters(), SGD)
    before = [param.detach().clone() for param in net.parameters()]
    with pytest.raises(UsageError, match=r"at_weights reaches none.*the very network"):
        optimizer.step(lambda: net(torch.ones(2, 3)).square().mean(), at_weights=lambda: squares(other))
    assert all(torch.equal(param, kept) for param, kept in zip(net.parameters(), before, strict=True))
