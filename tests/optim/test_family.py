"""What every member of the family promises, around every base."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler

from uumamba.errors import UsageError
from uumamba.optim import ASAM, SAM, Plain, SharpnessAware

Member = type[Plain | SAM | ASAM]
Problem = Callable[..., tuple[nn.Module, list[tuple[Tensor, Tensor]]]]

BASES = {
    "SGD": partial(SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "AdamW": partial(AdamW, lr=0.01),
}


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> Callable[..., Optimizer]:
    return BASES[request.param]


def train(optimizer: SharpnessAware, net: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [optimizer.step(lambda x=x, y=y: F.mse_loss(net(x), y)) for x, y in batches]


def weights_of(net: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in net.parameters()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_minimises_a_bowl(member: Member, base: Callable[..., Optimizer], dtype: torch.dtype) -> None:
    target = torch.tensor([[1.0, -0.5], [0.25, 1.5]], dtype=dtype)
    weight = nn.Parameter(torch.zeros(2, 2, dtype=dtype))
    optimizer = member([weight], base, max_grad_norm=1.0)
    losses = [optimizer.step(lambda: ((weight - target) ** 2).sum()) for _ in range(400)]
    assert losses[-1] < 0.02 * losses[0]
    assert weight.dtype == dtype
    assert optimizer.skipped_steps == 0


def test_parameters_without_a_gradient_are_left_alone(member: Member, base: Callable[..., Optimizer]) -> None:
    used, unused, frozen = (nn.Parameter(torch.ones(2, 2)) for _ in range(3))
    frozen.requires_grad_(False)
    optimizer = member([used, unused, frozen], base)
    optimizer.step(lambda: (used * frozen).pow(2).sum())
    assert torch.equal(unused, torch.ones(2, 2))
    assert torch.equal(frozen, torch.ones(2, 2))
    assert unused.grad is None
    assert not torch.equal(used, torch.ones(2, 2))


def test_two_groups_have_their_own_learning_rates(member: Member) -> None:
    fast, slow = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = member([{"params": [fast], "lr": 0.1}, {"params": [slow]}], partial(SGD, lr=0.001))
    optimizer.step(lambda: (fast + slow).pow(2).sum())
    assert (1 - fast.detach() > 50 * (1 - slow.detach())).all()


def test_rho_of_zero_is_the_base_bit_for_bit(
    climber: type[SAM | ASAM], base: Callable[..., Optimizer], problem: Problem
) -> None:
    net, batches = problem()
    reference = base(net.parameters())
    for x, y in batches:
        reference.zero_grad()
        F.mse_loss(net(x), y).backward()
        reference.step()
    other, _ = problem()
    train(climber(other.parameters(), base, rho=0.0), other, batches)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_rho_of_zero_is_the_base_also_with_dropout(climber: type[SAM | ASAM]) -> None:
    results = []
    for make in (Plain, partial(climber, rho=0.0)):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 1))
        optimizer = make(net.parameters(), BASES["SGD"])
        for _ in range(5):
            optimizer.step(lambda net=net: net(torch.ones(2, 4)).pow(2).sum())
        results.append(weights_of(net))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_plain_with_clipping_equals_torchs_clipping(base: Callable[..., Optimizer], problem: Problem) -> None:
    net, batches = problem()
    reference = base(net.parameters())
    for x, y in batches:
        reference.zero_grad()
        F.mse_loss(net(x), y).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        reference.step()
    other, _ = problem()
    train(Plain(other.parameters(), base, max_grad_norm=0.1), other, batches)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_only_the_final_gradient_is_clipped(climber: type[SAM | ASAM]) -> None:
    weight, seen = nn.Parameter(torch.full((2, 2), 10.0)), []

    def closure() -> Tensor:
        seen.append(weight.detach().clone())
        return weight.pow(2).sum()

    climber([weight], partial(SGD, lr=1.0), rho=0.5, max_grad_norm=0.1).step(closure)
    assert (seen[1] - seen[0]).norm() > 0.4
    assert (weight.detach() - seen[0]).norm().item() == pytest.approx(0.1, rel=1e-4)


def test_learning_rate_of_zero_restores_bit_for_bit(climber: type[SAM | ASAM], problem: Problem) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        net, batches = problem(dtype=dtype)
        before = weights_of(net)
        train(climber(net.parameters(), partial(SGD, lr=0.0), rho=3.7), net, batches)
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_it_returns_the_first_loss_detached(member: Member, problem: Problem) -> None:
    net, batches = problem()
    x, y = batches[0]
    expected = F.mse_loss(net(x), y)
    loss = member(net.parameters(), BASES["SGD"]).step(lambda: F.mse_loss(net(x), y))
    assert loss == expected
    assert not loss.requires_grad


def test_a_raising_second_closure_leaves_the_weights(climber: type[SAM | ASAM], problem: Problem) -> None:
    net, batches = problem(norm=True)
    x, y = batches[0]
    before, calls = {key: value.clone() for key, value in net.state_dict().items()}, []

    def closure() -> Tensor:
        calls.append(weights_of(net))
        loss = F.mse_loss(net(x), y)
        if len(calls) == 2:
            raise RuntimeError("the disk is full")
        return loss

    optimizer = climber(net.parameters(), BASES["AdamW"], net=net)
    with pytest.raises(RuntimeError, match="the disk is full"):
        optimizer.step(closure)
    assert not torch.equal(calls[0][0], calls[1][0]), "the second call must be at the climbed weights"
    assert all(torch.equal(a, b) for a, b in zip(calls[0], net.parameters(), strict=True))
    assert net.state_dict()["1.num_batches_tracked"] == before["1.num_batches_tracked"] + 1
    assert len(optimizer.base.state) == 0


@pytest.mark.parametrize("bad_pass", [1, 2])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_pass_that_is_not_finite_skips_the_step(
    member: Member, base: Callable[..., Optimizer], problem: Problem, bad_pass: int, value: float
) -> None:
    net, batches = problem()
    optimizer = member(net.parameters(), base)
    train(optimizer, net, batches[:3])
    before, state = weights_of(net), optimizer.state_dict()
    x, y = batches[3]
    calls = []

    def closure() -> Tensor:
        calls.append(weights_of(net))
        factor = value if len(calls) == bad_pass or member is Plain else 1.0
        return F.mse_loss(net(x), y) * factor

    optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert all(torch.isfinite(weight).all() for call in calls for weight in call), "no pass may see broken weights"
    assert optimizer.skipped_steps == 1
    after = optimizer.state_dict()["base"]["state"]
    for key, values in state["base"]["state"].items():
        torch.testing.assert_close(after[key], values, rtol=0, atol=0)
    train(optimizer, net, batches[3:6])
    assert optimizer.skipped_steps == 1
    assert not torch.equal(before[0], weights_of(net)[0])


def test_a_flat_slope_gives_no_nan(climber: type[SAM | ASAM]) -> None:
    weight = nn.Parameter(torch.zeros(3, 3))
    optimizer = climber([weight], partial(SGD, lr=0.1), rho=0.5)
    optimizer.step(lambda: weight.pow(2).sum())
    assert torch.equal(weight, torch.zeros(3, 3))
    assert optimizer.skipped_steps == 0


def test_a_slope_at_the_edge_of_float32_gives_no_nan(climber: type[SAM | ASAM]) -> None:
    weight = nn.Parameter(torch.ones(1, 1))
    optimizer = climber([weight], partial(SGD, lr=0.1))
    optimizer.step(lambda: (weight * 1e-44).sum())
    assert torch.isfinite(weight).all()


def test_groups_with_perturb_false_neither_climb_nor_count(climber: type[SAM | ASAM]) -> None:
    climbed, still = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.full((2, 2), 5.0))
    seen = []

    def closure() -> Tensor:
        seen.append((climbed.detach().clone(), still.detach().clone()))
        return climbed.pow(2).sum() + 100 * still.pow(2).sum()

    groups = [{"params": [climbed]}, {"params": [still], "perturb": False}]
    optimizer = climber(groups, partial(SGD, lr=0.001), rho=0.3)
    optimizer.step(closure)
    assert torch.equal(seen[1][1], seen[0][1])
    # all entries alike: T is one number t, so eps = rho * t * g / |g|, of which every entry is rho * t / 2
    t = 1.0 if climber is SAM else 1.01
    torch.testing.assert_close(seen[1][0] - seen[0][0], torch.full((2, 2), 0.3 * t / 2))
    assert not torch.equal(still, seen[0][1]), "it learns all the same"


def test_groups_may_have_their_own_rho(climber: type[SAM | ASAM]) -> None:
    near, far, fixed = (nn.Parameter(torch.ones(1, 2)) for _ in range(3))
    seen = []

    def closure() -> Tensor:
        seen.append([param.detach().clone() for param in (near, far, fixed)])
        return (near + far + fixed).pow(2).sum()

    groups = [{"params": [near]}, {"params": [far], "rho": 0.2}, {"params": [fixed], "rho": 0.0}]
    climber(groups, partial(SGD, lr=0.1), rho=0.1).step(closure)
    moves = [after - before for before, after in zip(*seen, strict=True)]
    torch.testing.assert_close(moves[1], 2 * moves[0])
    assert not moves[2].any()


@pytest.mark.parametrize(
    "schedule",
    [
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.9**step),
        partial(lr_scheduler.CosineAnnealingLR, T_max=10),
        partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=10),
        partial(lr_scheduler.PolynomialLR, total_iters=10, power=0.9),
    ],
)
def test_schedulers_attach_without_a_warning(member: Member, schedule: Callable[..., Any]) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = member([weight], partial(SGD, lr=0.1, momentum=0.9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = schedule(optimizer)
        for _ in range(3):
            optimizer.step(lambda: weight.pow(2).sum())
            scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == scheduler.get_last_lr()[0] != 0.1


def test_it_is_an_optimizer_that_shares_its_groups_with_the_base(member: Member) -> None:
    optimizer = member([nn.Parameter(torch.ones(2, 2))], partial(SGD, lr=0.1))
    assert isinstance(optimizer, Optimizer)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.5})
    assert optimizer.param_groups is optimizer.base.param_groups
    assert [group["perturb"] for group in optimizer.base.param_groups] == [True, True]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]


def test_named_parameters_are_taken(member: Member, problem: Problem) -> None:
    net, batches = problem()
    optimizer = member(net.named_parameters(), BASES["AdamW"])
    train(optimizer, net, batches[:2])
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in net.named_parameters()]


def test_the_callers_groups_are_left_as_they_are(member: Member) -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2, 2))]}]
    member(groups, partial(SGD, lr=0.1))
    assert list(groups[0]) == ["params"]


def test_a_torch_style_closure_is_accepted(member: Member, problem: Problem) -> None:
    net, batches = problem()
    train(member(net.parameters(), BASES["SGD"]), net, batches)
    other, _ = problem()
    optimizer = member(other.parameters(), BASES["SGD"])
    for x, y in batches:

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = F.mse_loss(other(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_at_weights_is_added_at_the_unclimbed_weights(member: Member) -> None:
    weight = nn.Parameter(torch.full((1, 1), 2.0))
    penalty_at = []

    def penalty() -> Tensor:
        penalty_at.append(weight.item())
        return weight.pow(3).sum()

    optimizer = member([weight], partial(SGD, lr=0.01), **({} if member is Plain else {"rho": 0.5}))
    optimizer.step(lambda: weight.pow(2).sum(), at_weights=penalty)
    climb = {Plain: 0.0, SAM: 0.5, ASAM: 0.5 * 2.01}[member]
    gradient = 2 * (2 + climb) + 3 * 2.0**2
    assert weight.item() == pytest.approx(2 - 0.01 * gradient)
    assert penalty_at == [2.0]


def test_another_loss_may_be_climbed() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    seen = []

    def closure() -> tuple[Tensor, Tensor]:
        seen.append(weight.detach().clone())
        return weight.pow(2).sum(), weight[0, 0]

    loss = SAM([weight], partial(SGD, lr=0.1), rho=0.5).step(closure, ascent=lambda output: -output)
    assert loss == 25, "the task loss is returned"
    torch.testing.assert_close(seen[1] - seen[0], torch.tensor([[-0.5, 0.0]]))
    torch.testing.assert_close(weight.detach(), seen[0] - 0.1 * 2 * seen[1])


def test_an_outer_autocast_does_not_see_unclimbed_weights() -> None:
    net = nn.Linear(4, 4, bias=False)
    x, outputs = torch.eye(4), []

    def closure() -> Tensor:
        outputs.append(net(x).detach().float())
        return net(x).float().pow(2).sum()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        SAM(net.parameters(), partial(SGD, lr=0.0), rho=2.0).step(closure)
        SAM(net.parameters(), partial(SGD, lr=0.0), rho=0.0).step(closure)
    assert (outputs[1] - outputs[0]).norm().item() == pytest.approx(2.0, rel=0.02)
    assert torch.equal(outputs[2], outputs[0]), "nor does it see climbed ones afterwards"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o, w: o.step([]), "at least one closure"),
        (lambda o, w: o.step(lambda: 1.0), r"scalar tensor, or \(loss, outputs\); got float"),
        (lambda o, w: o.step(lambda: w * 2), r"got a tensor of shape \(2, 2\)"),
        (lambda o, w: o.step(lambda: w.detach().sum()), "loss has no gradient"),
        (lambda o, w: o.step(lambda: torch.ones((), requires_grad=True) * 2), "reaches none of the optimizer's"),
    ],
)
def test_a_closure_of_no_use_is_refused(
    member: Member, call: Callable[[SharpnessAware, Tensor], Tensor], message: str
) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(UsageError, match=message):
        call(member([weight], partial(SGD, lr=0.1)), weight)


def test_a_closure_that_ran_backward_cannot_have_another_loss_climbed(climber: type[SAM | ASAM]) -> None:
    weight = nn.Parameter(torch.ones(2, 2))

    def closure() -> tuple[Tensor, Tensor]:
        loss = weight.sum()
        loss.backward()
        return loss, weight

    with pytest.raises(UsageError, match="ran backward itself, so there is no other loss left to climb"):
        climber([weight], partial(SGD, lr=0.1)).step(closure, ascent=lambda output: output.sum())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: SAM(p, SGD(p, lr=0.1)), TypeError, "base must make an optimizer, got a SGD; pass a callable"),
        (lambda p: SAM(p, lambda groups: None), TypeError, "it made a NoneType"),
        (lambda p: SAM(p, lambda groups: SGD([nn.Parameter(torch.ones(1))], lr=1)), ValueError, "other parameters"),
        (lambda p: SAM(p[0], partial(SGD, lr=0.1)), TypeError, "got one tensor"),
        (lambda p: SAM(p, partial(SGD, lr=0.1), rho=-1.0), ValueError, "rho must be finite and not negative, got -1.0"),
        (
            lambda p: SAM([{"params": p, "rho": float("nan")}], partial(SGD, lr=0.1)),
            ValueError,
            "got nan in parameter group 0",
        ),
        (lambda p: ASAM(p, partial(SGD, lr=0.1), eta=-0.1), ValueError, "eta must not be negative, got -0.1"),
        (lambda p: Plain(p, partial(SGD, lr=0.1), max_grad_norm=0), ValueError, "max_grad_norm must be positive"),
        (lambda p: Plain(p, partial(SGD, lr=0.1), accumulation="half"), ValueError, "'half'"),
        (lambda p: Plain([], partial(SGD, lr=0.1)), ValueError, "empty parameter list"),
    ],
)
def test_arguments_of_no_use_are_refused(
    make: Callable[[list[nn.Parameter]], SharpnessAware], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make([nn.Parameter(torch.ones(2, 2))])
