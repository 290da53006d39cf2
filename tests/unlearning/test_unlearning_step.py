"""One step: where each gradient is taken, and what a step leaves alone."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector
from torch.optim import SGD

from tests.optim_members import OPTIMIZERS
from uumamba.optim import SAM, Plain, SharpnessAware
from uumamba.unlearning import (
    NPO,
    CurvatureRegularization,
    GradientDifference,
    GradientPenalty,
    MeanLoss,
    RandomizedSmoothing,
    Smoothing,
    UnlearningStep,
)

SMOOTHINGS: list[Smoothing | None] = [
    None,
    RandomizedSmoothing(sigma=0.05, draws=2),
    GradientPenalty(weight=0.1),
    CurvatureRegularization(weight=0.1),
]


class Weight(nn.Module):
    """A single weight, whose losses are functions of it."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([value], dtype=torch.float64))


def forget(net: Any, batch: Tensor) -> Tensor:
    return (net.w**3).sum() * batch.mean()


def retain(net: Any, batch: Tensor) -> Tensor:
    return (net.w**2).sum() * batch.mean()


ONE = torch.ones(1)


def test_the_retain_gradient_is_taken_at_the_original_weights() -> None:
    net = Weight(2.0)
    optimizer = SAM(net.parameters(), partial(SGD, lr=0.01), rho=0.5)
    record = UnlearningStep(forget, retain, retain_weight=10.0)(net, optimizer, [ONE], [ONE])
    # 3 * 2.5^2 of the forget loss at 2 + 0.5, and 10 * 2 * 2 of the retain loss at 2
    assert net.w.item() == pytest.approx(2 - 0.01 * (18.75 + 40))
    assert (record.forget_loss, record.retain_loss) == (8.0, 4.0)
    both_at_perturbed = 2 - 0.01 * (18.75 + 10 * 2 * 2.5)  # one closure for both losses
    retain_after = (2 - 0.01 * 18.75) * (1 - 0.01 * 20)  # a second step
    assert net.w.item() not in (pytest.approx(both_at_perturbed), pytest.approx(retain_after))


def test_the_retain_gradient_does_not_turn_the_perturbation() -> None:
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 1.0]]))
    seen = []

    def forget(net: Any, batch: Tensor) -> Tensor:
        seen.append(net.weight.detach().clone())
        return net.weight[0, 0] ** 2

    step = UnlearningStep(forget, lambda net, batch: net.weight[0, 1] ** 2, retain_weight=100.0)
    step(net, SAM(net.parameters(), partial(SGD, lr=0.1), rho=0.5), [ONE], [ONE])
    torch.testing.assert_close(seen, [torch.tensor([[1.0, 1.0]]), torch.tensor([[1.5, 1.0]])])


@pytest.fixture
def batches() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(1)
    return (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double(),
        torch.randn(4, 3).double(),
        torch.arange(4) % 3,
    )


def cut(image: Tensor, label: Tensor, sizes: list[int]) -> list[tuple[Tensor, Tensor]]:
    return list(zip(image.split(sizes), label.split(sizes), strict=True))


def run(net: nn.Module, step: UnlearningStep, parts: list[Any], make: Callable[..., SharpnessAware]) -> Tensor:
    net = deepcopy(net)
    step(net, make(net.parameters(), partial(SGD, lr=0.5)), parts, parts)
    return parameters_to_vector(net.parameters()).detach()


@pytest.mark.parametrize("smoothing", [None, RandomizedSmoothing(sigma=0.3)], ids=["plain", "random"])
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [3, 1]])
@pytest.mark.parametrize("make", [Plain, partial(SAM, rho=0.3, accumulation="full")], ids=["Plain", "SAM"])
def test_accumulated_micro_batches_of_any_size_equal_one_batch(
    batches: Any, smoothing: Smoothing | None, sizes: list[int], make: Any
) -> None:
    net, image, label = batches
    reference = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    found = [
        run(
            net,
            UnlearningStep(NPO(reference, beta=3.0), MeanLoss(), smoothing=smoothing),
            cut(image, label, parts),
            make,
        )
        for parts in ([4], sizes)
    ]
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_every_micro_batch_counts_in_every_smoothing(batches: Any, smoothing: Smoothing | None) -> None:
    net, image, label = batches
    step = lambda: UnlearningStep(GradientDifference(), MeanLoss(), retain_weight=0.0, smoothing=smoothing)  # noqa: E731
    parts = cut(image, label, [2, 2])
    before = parameters_to_vector(net.parameters()).detach()
    both = run(net, step(), parts, Plain) - before
    alone = [run(net, step(), [part], Plain) - before for part in parts]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("smoothing", SMOOTHINGS, ids=["plain", "random", "penalty", "curvature"])
def test_every_smoothing_composes_with_every_optimizer(batches: Any, name: str, smoothing: Smoothing | None) -> None:
    net, image, label = batches
    forget_loss = NPO(net, beta=0.5, outputs=name.startswith("TRAM"))
    step = UnlearningStep(forget_loss, MeanLoss(), retain_weight=0.1, smoothing=smoothing)
    optimizer = OPTIMIZERS[name](net.parameters(), partial(SGD, lr=0.1, momentum=0.9), net=net)
    batch = [(image, label)]
    before = MeanLoss()(net, batch[0]).item()
    for _ in range(4):
        step(net, optimizer, batch, batch)
    assert optimizer.skipped_steps == 0
    assert MeanLoss()(net, batch[0]).item() > before


def test_smoothing_is_smoothed_again_by_sam() -> None:
    net = Weight(2.0)
    optimizer = SAM(net.parameters(), partial(SGD, lr=0.01), rho=0.5)
    step = UnlearningStep(forget, retain, retain_weight=0.0, smoothing=GradientPenalty(weight=0.1))
    step(net, optimizer, [ONE])
    # l_s = w^3 + 0.1 * 3 w^2 and its gradient 3 w^2 + 0.6 w at 2.5
    assert net.w.item() == pytest.approx(2 - 0.01 * (3 * 2.5**2 + 0.6 * 2.5))


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("make", [Plain, SAM])
def test_a_loss_that_is_not_finite_skips_the_step(batches: Any, smoothing: Smoothing | None, make: Any) -> None:
    net, image, label = batches
    before = parameters_to_vector(net.parameters()).clone()
    optimizer = make(net.parameters(), partial(SGD, lr=0.1))
    step = UnlearningStep(GradientDifference(), MeanLoss(), smoothing=smoothing)
    for forgotten, retained in ((image * math.nan, image), (image, image * math.nan)):
        record = step(net, optimizer, [(forgotten, label)], [(retained, label)])
        assert record.is_skipped
    assert optimizer.skipped_steps == 2
    assert torch.equal(parameters_to_vector(net.parameters()), before)
    assert not step(net, optimizer, [(image, label)], [(image, label)]).is_skipped


@pytest.mark.parametrize("smoothing", [None, GradientPenalty(weight=0.1)])
def test_an_error_in_any_pass_leaves_the_weights(batches: Any, smoothing: Smoothing | None) -> None:
    net, image, label = batches
    before = parameters_to_vector(net.parameters()).clone()
    for failing in range(1, 4):
        calls = iter(range(1, 4))

        def loss(net: nn.Module, batch: Any, *, calls: Iterator[int] = calls, failing: int = failing) -> Tensor:
            if next(calls) == failing:
                raise ValueError("planted")
            return F.cross_entropy(net(batch[0]), batch[1])

        optimizer = SAM(net.parameters(), partial(SGD, lr=0.1))
        with pytest.raises(ValueError, match="planted"):
            UnlearningStep(loss, loss, smoothing=smoothing)(net, optimizer, [(image, label)], [(image, label)])
        assert torch.equal(parameters_to_vector(net.parameters()), before)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_no_pass_moves_running_statistics(smoothing: Smoothing | None) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    batch = (torch.randn(8, 3), torch.randint(0, 3, (8,)))
    before = {name: value.clone() for name, value in net.named_buffers()}
    step = UnlearningStep(GradientDifference(), MeanLoss(), smoothing=smoothing)
    step(net, SAM(net.parameters(), partial(SGD, lr=0.1)), [batch], [batch])
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())


def test_a_frozen_parameter_stays_and_shifts_nothing(batches: Any) -> None:
    net, image, label = batches
    frozen = net[0].weight.requires_grad_(False)
    before = frozen.clone()
    optimizer = SAM([*net.parameters()], partial(SGD, lr=0.1), rho=0.1)
    g = torch.autograd.grad(F.cross_entropy(net(image), label), [net[0].bias, *net[2].parameters()])
    seen = []
    net.register_forward_hook(lambda net, *_: seen.append([p.detach().clone() for p in net.parameters()]))
    UnlearningStep(lambda net, batch: F.cross_entropy(net(image), label), MeanLoss(), retain_weight=0.0)(
        net, optimizer, [(image, label)]
    )
    norm = math.sqrt(sum(each.square().sum().item() for each in g))
    offsets = [b - a for a, b in zip(*seen, strict=True)]
    torch.testing.assert_close(offsets, [torch.zeros_like(frozen), *(0.1 * each / norm for each in g)])
    assert torch.equal(frozen, before)


def test_a_retain_weight_of_zero_needs_no_retain_batch(batches: Any, refused: Callable) -> None:
    net, image, label = batches
    optimizer = Plain(net.parameters(), partial(SGD, lr=0.1))
    step = UnlearningStep(GradientDifference(), MeanLoss(), retain_weight=0.0)
    assert math.isnan(step(net, optimizer, [(image, label)]).retain_loss)
    with refused("retain", "no batch"):
        UnlearningStep(GradientDifference(), MeanLoss())(net, optimizer, [(image, label)])
    with refused("forget", "no batch"):
        step(net, optimizer, [])
    with refused("retain_weight", -1.0):
        UnlearningStep(GradientDifference(), MeanLoss(), retain_weight=-1.0)


def test_a_smoothing_with_a_gradient_scaler_is_refused(batches: Any, refused: Callable) -> None:
    net, image, label = batches
    optimizer = Plain(net.parameters(), partial(SGD, lr=0.1), scaler=torch.amp.GradScaler("cpu"))
    step = UnlearningStep(GradientDifference(), MeanLoss(), smoothing=GradientPenalty(weight=1.0))
    with refused("smoothing", "an optimizer with a GradScaler"):
        step(net, optimizer, [(image, label)], [(image, label)])
