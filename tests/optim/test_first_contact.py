"""Calls in the manner of other libraries: right, or refused with the line to write."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW

from uumamba.optim import MSAM, SAM, FriendlySAM, Plain, SharpnessAware, StaleSAM

BASE = partial(SGD, lr=0.1, momentum=0.9)


def test_a_pickled_member_trains_like_the_original(member: str, training: Any) -> None:
    run = training(member)
    run.train(run.batches(3))
    copied = copy.copy(run)
    parts = (run.net, run.objective, run.optimizer)
    copied.net, copied.objective, copied.optimizer = pickle.loads(pickle.dumps(parts))
    assert copied.optimizer.param_groups is copied.optimizer.base.param_groups
    for each in (run, copied):
        each.train(each.batches(3))
    assert torch.equal(run.weights, copied.weights)


def small_net() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])


def scale_in(place: str, net: nn.Module, optimizer: SharpnessAware, loss_of: Callable[[], Tensor]) -> Any:
    """Make a closure that scales by the caller's own scaler in one of the usual ways."""
    scaler = torch.amp.GradScaler("cpu")
    trainer = SimpleNamespace(scaler=scaler)

    def backward(loss: Tensor) -> None:
        scaler.scale(loss).backward()

    def torch_style(scaler: torch.amp.GradScaler = scaler) -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        scaler.scale(loss).backward()
        return loss

    def in_a_helper() -> Tensor:
        loss = loss_of()
        backward(loss)
        return loss

    def by_an_attribute() -> Tensor:
        loss = loss_of()
        trainer.scaler.scale(loss).backward()
        return loss

    def with_the_loss() -> tuple[Tensor, None]:
        return scaler.scale(loss_of()), None

    return {
        "default": torch_style,
        "partial": partial(torch_style, scaler=scaler),
        "helper": in_a_helper,
        "attribute": by_an_attribute,
        "returned": lambda: scaler.scale(loss_of()),
        "returned with outputs": with_the_loss,
    }[place]


@pytest.mark.parametrize("make", [Plain, SAM, MSAM, StaleSAM])
@pytest.mark.parametrize("place", ["default", "partial", "helper", "attribute", "returned", "returned with outputs"])
def test_a_loss_scaled_by_the_caller_is_refused(place: str, make: Any, refused: Any) -> None:
    net, x, y = small_net()
    before = net.weight.detach().clone()
    optimizer = make(net.parameters(), BASE)
    closure = scale_in(place, net, optimizer, lambda: F.cross_entropy(net(x), y))
    with refused("closure", got="a loss scaled by a GradScaler") as error:
        optimizer.step(closure)
    assert "scaler=scaler" in str(error.value)
    assert torch.equal(net.weight, before)


def test_a_closure_without_a_scaler_may_multiply_and_run_backward() -> None:
    net, x, y = small_net()
    scaler, scale = torch.amp.GradScaler("cpu", enabled=False), torch.tensor(2.0)
    optimizer = SAM(net.parameters(), BASE)
    optimizer.step(lambda: scale * F.cross_entropy(net(x), y))
    optimizer.step(lambda: scaler.scale(F.cross_entropy(net(x), y)) * 0.5)
    assert optimizer.skipped_steps == 0


@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks:UserWarning")
@pytest.mark.parametrize("compiled", [False, True])
def test_running_statistics_count_each_batch_once_without_net(compiled: bool) -> None:
    runs = []
    for make in (Plain, SAM):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
        called = torch.compile(net, backend="eager") if compiled else net
        optimizer = make(net.parameters(), partial(SGD, lr=0.0))
        for x in torch.randn(3, 8, 3, generator=torch.Generator().manual_seed(1)):
            optimizer.step(
                lambda called=called, x=x: called(x).square().mean(),
                at_weights=lambda called=called, x=x: called(2 * x).square().mean(),
            )
        runs.append(net[1])
    plain, sam = runs
    assert sam.num_batches_tracked == 3
    torch.testing.assert_close(sam.running_mean, plain.running_mean)
    torch.testing.assert_close(sam.running_var, plain.running_var)


def test_a_base_that_loads_a_state_of_its_own_still_shares_its_groups() -> None:
    net, _, _ = small_net()
    trained = SGD(net.parameters(), lr=0.3, momentum=0.9)
    for optimizer in (SAM(net.parameters(), BASE), pickle.loads(pickle.dumps(SAM(net.parameters(), BASE)))):
        optimizer.base.load_state_dict(trained.state_dict())
        assert optimizer.param_groups is optimizer.base.param_groups
        assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["rho"]) == (0.3, 0.05)


@pytest.mark.parametrize(
    ("make", "other", "got"),
    [
        (SAM, FriendlySAM, "the state of FriendlySAM, with its rho"),
        (SAM, Plain, "the state of Plain, with its rho"),
        (SAM, lambda params, base: SAM(params, AdamW), "a base without dampening, momentum, nesterov"),
    ],
)
def test_the_state_of_another_member_or_base_is_refused(make: Any, other: Any, got: str, refused: Any) -> None:
    net, _, _ = small_net()
    with refused("state_dict", got=got):
        make(net.parameters(), BASE).load_state_dict(other(net.parameters(), BASE).state_dict())


class OwnSignature(SAM):
    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__(net.parameters(), partial(SGD, lr=lr), net=net)


def test_a_subclass_may_have_a_signature_of_its_own() -> None:
    assert OwnSignature(nn.Linear(1, 1), lr=0.5).param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("make", [Plain, SAM, MSAM])
def test_sparse_and_complex_parameters_are_refused(make: Any, refused: Any) -> None:
    embedding = nn.Embedding(5, 2, sparse=True)
    with refused("params", got="a sparse gradient"):
        make(embedding.parameters(), BASE).step(lambda: embedding(torch.tensor([0, 1])).square().sum())
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with refused("params", got="a parameter of torch.complex64"):
        make([weight], BASE)
    frozen = nn.Parameter(torch.ones(2, dtype=torch.complex64), requires_grad=False)
    assert len(make([frozen, nn.Parameter(torch.ones(2))], BASE).param_groups[0]["params"]) == 2


def test_parameters_twice_are_refused_also_in_a_later_group(refused: Any) -> None:
    weight = nn.Parameter(torch.ones(2))
    for params in ([weight, weight], [{"params": [weight]}, {"params": weight}]):
        with refused("params", got="a parameter of shape (2,) twice"):
            SAM(params, BASE)


def test_hasattr_says_that_other_libraries_methods_are_absent() -> None:
    optimizer = SAM([nn.Parameter(torch.ones(2))], BASE)
    assert not hasattr(optimizer, "first_step")
    with pytest.raises(AttributeError, match="'SAM' object has no attribute 'frist_step'"):
        optimizer.frist_step()
