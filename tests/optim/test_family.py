"""What every member of the family promises, around every base."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler

from uumamba.optim import (
    ASAM,
    GSAM,
    MSAM,
    SAGM,
    SAM,
    FriendlySAM,
    LookSAM,
    Plain,
    SharpnessAware,
    StaleSAM,
    norm_layers_only,
)
from uumamba.runtime.errors import UsageError

Member = type[SharpnessAware]
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
    optimizer = member([weight], base, max_grad_norm=1.0, **({} if member is Plain else {"rho": 0.05}))
    start = ((weight - target) ** 2).sum().item()
    for _ in range(200):
        optimizer.step(lambda: ((weight - target) ** 2).sum())
    assert ((weight - target) ** 2).sum() < 0.02 * start
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
    optimizer = member([{"params": [fast], "lr": 0.1}, {"params": [slow]}], partial(SGD, lr=0.001, momentum=0.9))
    optimizer.step(lambda: (fast + slow).pow(2).sum())
    assert (1 - fast.detach() > 50 * (1 - slow.detach())).all()


def test_rho_of_zero_is_the_base_bit_for_bit(
    climber: type[SharpnessAware], base: Callable[..., Optimizer], problem: Problem
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


def test_rho_of_zero_is_the_base_also_with_dropout(climber: type[SharpnessAware]) -> None:
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


def test_only_the_final_gradient_is_clipped(looker: type[SharpnessAware]) -> None:
    weight, seen = nn.Parameter(torch.full((2, 2), 10.0)), []

    def closure() -> Tensor:
        seen.append(weight.detach().clone())
        return weight.pow(2).sum()

    looker([weight], partial(SGD, lr=1.0), rho=0.5, max_grad_norm=0.1).step(closure)
    assert (seen[1] - seen[0]).norm() > 0.4
    assert (weight.detach() - seen[0]).norm().item() == pytest.approx(0.1, rel=1e-4)


def test_learning_rate_of_zero_restores_bit_for_bit(climber: type[SharpnessAware], problem: Problem) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        net, batches = problem(dtype=dtype)
        before = weights_of(net)
        train(climber(net.parameters(), partial(SGD, lr=0.0, momentum=0.9), rho=3.7), net, batches)
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_it_returns_the_first_loss_detached(member: Member, problem: Problem) -> None:
    net, batches = problem()
    x, y = batches[0]
    expected = F.mse_loss(net(x), y)
    loss = member(net.parameters(), BASES["SGD"]).step(lambda: F.mse_loss(net(x), y))
    assert loss == expected
    assert not loss.requires_grad


def test_a_raising_second_closure_leaves_the_weights(looker: type[SharpnessAware], problem: Problem) -> None:
    net, batches = problem(norm=True)
    x, y = batches[0]
    before, calls = {key: value.clone() for key, value in net.state_dict().items()}, []

    def closure() -> Tensor:
        calls.append(weights_of(net))
        loss = F.mse_loss(net(x), y)
        if len(calls) == 2:
            raise RuntimeError("the disk is full")
        return loss

    optimizer = looker(net.parameters(), BASES["AdamW"], net=net)
    with pytest.raises(RuntimeError, match="the disk is full"):
        optimizer.step(closure)
    assert not torch.equal(calls[0][0], calls[1][0]), "the second call must be at the climbed weights"
    assert all(torch.equal(a, b) for a, b in zip(calls[0], net.parameters(), strict=True))
    assert net.state_dict()["1.num_batches_tracked"] == before["1.num_batches_tracked"] + 1
    assert len(optimizer.base.state) == 0


def test_a_raising_closure_leaves_the_weights_of_one_that_climbs_ahead(
    leader: type[SharpnessAware], problem: Problem
) -> None:
    net, batches = problem()
    optimizer = leader(net.parameters(), BASES["AdamW"])
    train(optimizer, net, batches[:3])
    before, seen = weights_of(net), []

    def closure() -> Tensor:
        seen.extend(weights_of(net))
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        optimizer.step(closure)
    assert not torch.equal(seen[0], before[0]), "the call must be at the climbed weights"
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("bad_pass", [1, 2])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_pass_that_is_not_finite_skips_the_step(
    member: Member,
    base: Callable[..., Optimizer],
    problem: Problem,
    one_pass: list[Member],
    bad_pass: int,
    value: float,
) -> None:
    net, batches = problem()
    optimizer = member(net.parameters(), base)
    train(optimizer, net, batches[:5])  # so that the next step of every member has all its passes
    before, state = weights_of(net), optimizer.state_dict()
    x, y = batches[5]
    calls = []

    def closure() -> Tensor:
        calls.append(weights_of(net))
        factor = value if len(calls) == bad_pass or member in one_pass else 1.0
        return F.mse_loss(net(x), y) * factor

    optimizer.step(closure)
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert all(torch.isfinite(weight).all() for call in calls for weight in call), "no pass may see broken weights"
    assert optimizer.skipped_steps == 1
    after = optimizer.state_dict()["base"]["state"]
    for key, values in state["base"]["state"].items():
        torch.testing.assert_close(after[key], values, rtol=0, atol=0)
    train(optimizer, net, batches[5:13])
    assert optimizer.skipped_steps == 1
    assert all(torch.isfinite(weight).all() for weight in weights_of(net)), "nothing kept is poisoned"
    assert not torch.equal(before[0], weights_of(net)[0])


def test_a_flat_slope_gives_no_nan(climber: type[SharpnessAware]) -> None:
    weight = nn.Parameter(torch.zeros(3, 3))
    optimizer = climber([weight], partial(SGD, lr=0.1, momentum=0.9), rho=0.5)
    for _ in range(3):
        optimizer.step(lambda: weight.pow(2).sum())
    assert torch.equal(weight, torch.zeros(3, 3))
    assert optimizer.skipped_steps == 0


def test_a_slope_at_the_edge_of_float32_gives_no_nan(climber: type[SharpnessAware]) -> None:
    weight = nn.Parameter(torch.ones(1, 1))
    optimizer = climber([weight], partial(SGD, lr=0.1, momentum=0.9))
    for _ in range(3):
        optimizer.step(lambda: (weight * 1e-44).sum())
    assert torch.isfinite(weight).all()


def test_groups_with_perturb_false_neither_climb_nor_count(
    climber: type[SharpnessAware], one_pass: list[Member]
) -> None:
    climbed, still = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.full((2, 2), 5.0))
    seen = []

    def closure() -> Tensor:
        seen.append((climbed.detach().clone(), still.detach().clone()))
        return climbed.pow(2).sum() + 100 * still.pow(2).sum()

    groups = [{"params": [climbed]}, {"params": [still], "perturb": False}]
    optimizer = climber(groups, partial(SGD, lr=0.001, momentum=0.9), rho=0.3)
    for _ in range(1 if climber in one_pass else 0):
        optimizer.step(closure)
    before = climbed.detach().clone(), still.detach().clone()
    optimizer.step(closure)
    assert torch.equal(seen[-1][1], before[1])
    # all entries alike, so every entry of eps is half of rho; ASAM's times T = 1.01, SAGM's less alpha times 2
    expected = {ASAM: 0.15 * 1.01, SAGM: 0.15 - 0.001 * 2, MSAM: -0.15}.get(climber, 0.15)
    torch.testing.assert_close(seen[-1][0] - before[0], torch.full((2, 2), expected))
    assert not torch.equal(still, before[1]), "it learns all the same"


def test_groups_may_have_their_own_rho(climber: type[SharpnessAware], one_pass: list[Member]) -> None:
    near, far, fixed = (nn.Parameter(torch.ones(1, 2)) for _ in range(3))
    seen = []

    def closure() -> Tensor:
        seen.append([param.detach().clone() for param in (near, far, fixed)])
        return (near + far + fixed).pow(2).sum()

    groups = [{"params": [near]}, {"params": [far], "rho": 0.2}, {"params": [fixed], "rho": 0.0}]
    options = {"alpha": 0.0} if climber is SAGM else {}
    optimizer = climber(groups, partial(SGD, lr=0.0, momentum=0.9), rho=0.1, **options)
    for _ in range(2 if climber in one_pass else 1):
        optimizer.step(closure)
    moves = [after - before for before, after in zip(seen[0], seen[-1], strict=True)]
    assert moves[0].any()
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
    optimizer = member([nn.Parameter(torch.ones(2, 2))], partial(SGD, lr=0.1, momentum=0.9))
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
    member(groups, partial(SGD, lr=0.1, momentum=0.9))
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

    base = partial(SGD, lr=0.01, momentum=0.9)
    optimizer = member([weight], base, **({} if member is Plain else {"rho": 0.5}))
    optimizer.step(lambda: weight.pow(2).sum(), at_weights=penalty)
    climb = {Plain: 0.0, ASAM: 0.5 * 2.01, SAGM: 0.5 - 0.001 * 4, MSAM: 0.0, StaleSAM: 0.0}.get(member, 0.5)
    descent = 2 * (2 + climb / 2) if member is SAGM else 2 * (2 + climb)
    assert weight.item() == pytest.approx(2 - 0.01 * (descent + 3 * 2.0**2))
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
        call(member([weight], partial(SGD, lr=0.1, momentum=0.9)), weight)


@pytest.mark.parametrize("member", [SAM, ASAM, GSAM, FriendlySAM])
def test_a_closure_that_ran_backward_cannot_have_another_loss_climbed(member: Member) -> None:
    weight = nn.Parameter(torch.ones(2, 2))

    def closure() -> tuple[Tensor, Tensor]:
        loss = weight.sum()
        loss.backward()
        return loss, weight

    with pytest.raises(UsageError, match="ran backward itself, so there is no other loss left to climb"):
        member([weight], partial(SGD, lr=0.1)).step(closure, ascent=lambda output: output.sum())


@pytest.mark.parametrize("member", [LookSAM, SAGM])
def test_one_that_descends_with_the_first_gradient_refuses_another_loss_to_climb(member: Member) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(UsageError, match=f"{member.__name__} descends with the first pass's gradient too.*such as SAM"):
        member([weight], BASES["SGD"]).step(lambda: (weight.sum(), weight), ascent=lambda output: output.sum())
    assert torch.equal(weight, torch.ones(2, 2))


@pytest.mark.parametrize("member", [SAM, ASAM, GSAM, FriendlySAM])
def test_another_loss_is_climbed_and_the_loss_descended(member: Member) -> None:
    weight = nn.Parameter(torch.zeros(1, 2) + 1.0)
    seen: list[Tensor] = []

    def closure() -> tuple[Tensor, Tensor]:
        seen.append(weight.detach().clone())
        return weight[0, 0] * 1.0, weight

    member([weight], partial(SGD, lr=0.1), rho=0.5).step(closure, ascent=lambda output: output[0, 1])
    moved = (seen[1] - seen[0])[0]
    assert moved[0] == 0
    assert moved[1] > 0.4
    assert weight[0, 0] < 1


def test_one_that_climbs_ahead_refuses_another_loss_to_climb(leader: type[SharpnessAware]) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    with pytest.raises(UsageError, match=f"{leader.__name__} climbs along a direction of earlier steps.*such as SAM"):
        leader([weight], BASES["SGD"]).step(lambda: weight.sum(), ascent=lambda output: output)


def test_a_tiny_rho_is_nearly_the_base(
    climber: type[SharpnessAware], base: Callable[..., Optimizer], problem: Problem
) -> None:
    # rho of 0 is a shortcut; LookSAM and SAGM differ from the base by a part that rho has no part in, 0 with alpha 0
    net, batches = problem(dtype=torch.float64)
    train(Plain(net.parameters(), base), net, batches[:20])
    other, _ = problem(dtype=torch.float64)
    options = {"alpha": 0.0} if climber in (LookSAM, SAGM) else {}
    train(climber(other.parameters(), base, rho=1e-9, **options), other, batches[:20])
    for plain, near in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(near, plain, rtol=0, atol=1e-5)


def test_passes_are_as_few_as_promised(member: Member, problem: Problem, one_pass: list[Member]) -> None:
    net, batches = problem()
    optimizer, calls = member(net.parameters(), BASES["SGD"]), []

    def closure(x: Tensor, y: Tensor) -> Tensor:
        calls.append(None)
        return F.mse_loss(net(x), y)

    for x, y in batches[:20]:
        optimizer.step(partial(closure, x, y))
    assert len(calls) / 20 == (1.0 if member in one_pass else {LookSAM: 1.2}.get(member, 2.0))


@pytest.mark.parametrize("make", [pytorch_optimizer.Lion, pytorch_optimizer.AdaBelief])
def test_a_third_partys_optimizer_may_be_the_base(
    climber: type[SharpnessAware], make: type[Optimizer], problem: Problem
) -> None:
    base = partial(make, lr=0.01)
    results = {}
    for name, wrap in (
        ("alone", lambda params: Plain(params, base)),
        ("flat", lambda params: climber(params, base, rho=0.0)),
        ("climbing", lambda params: climber(params, base, rho=0.3)),
    ):
        net, batches = problem()
        losses = train(wrap(net.parameters()), net, batches[:1] * 30)
        assert losses[-1] < 0.7 * losses[0]
        results[name] = weights_of(net)
    assert all(torch.equal(a, b) for a, b in zip(results["alone"], results["flat"], strict=True))
    assert not torch.equal(results["alone"][0], results["climbing"][0])


def test_groups_to_climb_that_get_no_gradient_do_no_harm(climber: type[SharpnessAware]) -> None:
    unused, still = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    groups = [{"params": [unused]}, {"params": [still], "perturb": False}]
    optimizer = climber(groups, BASES["SGD"])
    for _ in range(3):
        optimizer.step(lambda: still.pow(2).sum())
    assert torch.equal(unused, torch.ones(2, 2))
    assert (still < 1).all()


def test_only_norm_layers_are_climbed_and_everything_learns(
    climber: type[SharpnessAware], problem: Problem, one_pass: list[Member]
) -> None:
    net, [(x, y), *_] = problem(norm=True)
    optimizer = climber(norm_layers_only(net), BASES["SGD"], rho=0.3)
    seen = []

    def closure() -> Tensor:
        seen.append({name: param.detach().clone() for name, param in net.named_parameters()})
        return F.mse_loss(net(x), y)

    for _ in range(1 if climber in one_pass else 0):
        optimizer.step(closure)
    before = {name: param.detach().clone() for name, param in net.named_parameters()}
    optimizer.step(closure)
    moves = {name: seen[-1][name] - before[name] for name in before}
    assert {name for name, move in moves.items() if move.any()} == {"1.weight", "1.bias"}
    if climber not in (ASAM, SAGM):
        length = torch.cat([moves["1.weight"], moves["1.bias"]]).norm().item()
        assert length == pytest.approx(0.3, rel=1e-5), "the norm is over norm layers alone"
    assert all((param != before[name]).any() for name, param in net.named_parameters())


@pytest.mark.slow
def test_a_compiled_network_trains_alike(climber: type[SharpnessAware], problem: Problem) -> None:
    results = []
    for wrap in (lambda net: net, partial(torch.compile, backend="aot_eager")):
        net, batches = problem(norm=True)
        wrapped = wrap(net)
        optimizer = climber(net.parameters(), BASES["SGD"], rho=0.3, net=wrapped)
        train(optimizer, wrapped, batches[:8])
        results.append([*weights_of(net), *net.buffers()])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


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
        (lambda p: GSAM(p, BASES["SGD"], alpha=-0.1), ValueError, "alpha must not be negative, got -0.1"),
        (lambda p: GSAM(p, BASES["SGD"], rho_min=0.01), ValueError, "rho_min 0.01 and lr_max None"),
        (lambda p: GSAM(p, BASES["SGD"], lr_max=0.1), ValueError, "rho_min None and lr_max 0.1"),
        (lambda p: GSAM(p, BASES["SGD"], rho_min=0.1, lr_max=1.0), ValueError, "between 0 and rho 0.05, got 0.1"),
        (lambda p: GSAM(p, BASES["SGD"], rho_min=0.0, lr_max=0.1, lr_min=0.1), ValueError, "above lr_min, got 0.1 and"),
        (lambda p: FriendlySAM(p, BASES["SGD"], sigma=-1.0), ValueError, "sigma must not be negative, got -1.0"),
        (lambda p: FriendlySAM(p, BASES["SGD"], lam=1.0), ValueError, r"lam must be in \[0, 1\), got 1.0"),
        (lambda p: LookSAM(p, BASES["SGD"], k=0), ValueError, "k must be at least 1, got 0"),
        (lambda p: LookSAM(p, BASES["SGD"], alpha=-1.0), ValueError, "alpha must not be negative, got -1.0"),
        (lambda p: SAGM(p, BASES["SGD"], alpha=-1.0), ValueError, "alpha must not be negative, got -1.0"),
        (lambda p: MSAM(p, partial(SGD, lr=0.1)), UsageError, "momentum 0 in parameter group 0. MSAM moves along"),
    ],
)
def test_arguments_of_no_use_are_refused(
    make: Callable[[list[nn.Parameter]], SharpnessAware], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make([nn.Parameter(torch.ones(2, 2))])
