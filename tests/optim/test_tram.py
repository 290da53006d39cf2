"""TRAM in its four forms against the paper's equations, written out by hand in float64."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer

from uumamba.optim import SAM, TRAM, OutputBiasForgetting, Plain
from uumamba.runtime.errors import UsageError

Batch = tuple[Tensor, Tensor]
Weights = dict[str, Tensor]
Closure = Callable[[], tuple[Tensor, Any]]
LR, MOMENTUM, SIGMA, ETA, GAMMA = 0.2, 0.9, 0.3, 0.1, 0.1
FORMS = ("previous", "initial", "noise", "fisher")
WITH_DISTANCE = FORMS[:3]
BASES = {"SGD": partial(SGD, lr=0.05, momentum=0.9), "AdamW": partial(AdamW, lr=0.01)}


@pytest.fixture(params=FORMS)
def trust(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=WITH_DISTANCE)
def measuring(request: pytest.FixtureRequest) -> str:
    """The forms that measure a distance."""
    return request.param


def make_net(dtype: torch.dtype = torch.float64, middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(5, 8), middle or nn.Identity(), nn.Tanh(), nn.Linear(8, 4)).to(dtype)


def make_batches(count: int, dtype: torch.dtype = torch.float64) -> list[Batch]:
    torch.manual_seed(8)
    return [(torch.randn(6, 5, dtype=dtype), torch.randint(0, 4, (6,))) for _ in range(count)]


def closure_of(net: nn.Module, batch: Batch) -> Closure:
    def closure() -> tuple[Tensor, Tensor]:
        logits = net(batch[0])
        return F.cross_entropy(logits, batch[1]), logits

    return closure


def weights_of(net: nn.Module) -> Weights:
    return {name: param.detach().clone() for name, param in net.named_parameters()}


def assert_bitwise(found: Weights, expected: Weights) -> None:
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Watched:
    """A closure that stores at which weights it was called, and what came out."""

    def __init__(self, net: nn.Module, closure: Closure) -> None:
        self.net, self.closure = net, closure
        self.weights: list[Weights] = []
        self.logits: list[Tensor] = []

    def __call__(self) -> tuple[Tensor, Any]:
        self.weights.append(weights_of(self.net))
        loss, logits = self.closure()
        self.logits.append(logits.detach())
        return loss, logits


def inputs_seen(net: nn.Module) -> list[Tensor]:
    """The list to which each call of the network adds its input, noise included."""
    seen: list[Tensor] = []
    net.register_forward_hook(lambda module, args, output: seen.append(args[0].detach().clone()))
    return seen


# the paper's equations


def hand_divergence(then: Tensor, now: Tensor) -> Tensor:
    p, q = (logits.exp() / logits.exp().sum(1, keepdim=True) for logits in (then, now))
    return (p * (p.log() - q.log())).sum(1).mean()


def hand_gradient(net: nn.Module, weights: Weights, batches: Sequence[Batch]) -> Weights:
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    losses = [F.cross_entropy(functional_call(net, leaves, (x,)), y) for x, y in batches]
    found = torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def hand_climb(
    trust: str, net: nn.Module, weights: Weights, earlier: Weights, batches: Sequence[Batch], shaken: Sequence[Tensor]
) -> Weights:
    """The climbed weights of one block of micro-batches."""
    if trust == "fisher":
        g = hand_gradient(net, weights, [(x, y) for x, (_, y) in zip(shaken, batches, strict=True)])
        inverse = {name: 1 / (1 + ETA * g[name] ** 2) for name in g}
        length = sum((g[name] ** 2 * inverse[name]).sum() for name in g) ** 0.5
        return {name: weights[name] + GAMMA * inverse[name] * g[name] / length for name in g}
    distances = []
    for (x, _), noisy in zip(batches, shaken, strict=True):
        other = (weights, noisy) if trust == "noise" else (earlier, x)
        distances.append(hand_divergence(functional_call(net, *other), functional_call(net, weights, (x,))))
    d = torch.stack(distances).mean().detach()
    g = hand_gradient(net, weights, batches)
    length = sum(((weights[name].abs() * g[name]) ** 2).sum() for name in g) ** 0.5
    return {name: weights[name] + d * weights[name] ** 2 * g[name] / length for name in g}


def hand_training(
    trust: str, net: nn.Module, steps: Sequence[Sequence[Sequence[Batch]]], shaken: Iterator[Sequence[Tensor]]
) -> Weights:
    """The weights after SGD with momentum; a step is a list of blocks that climb together, a block one of batches."""
    weights = weights_of(net)
    first = earlier = weights
    velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for blocks in steps:
        found = []
        for block in blocks:
            known = earlier if trust == "previous" else first
            climbed = hand_climb(trust, net, weights, known, block, next(shaken))
            found.append(hand_gradient(net, climbed, block))
        mean = {name: torch.stack([gradient[name] for gradient in found]).mean(0) for name in weights}
        velocity = {name: MOMENTUM * velocity[name] + mean[name] for name in weights}
        earlier, weights = weights, {name: weights[name] - LR * velocity[name] for name in weights}
    return weights


def shaken_inputs(trust: str, seen: Sequence[Tensor], size: int) -> Iterator[Sequence[Tensor]]:
    """The inputs that took the noise, of each block of so many batches; any others where the form adds none."""
    passes, which = {"noise": (3, 1), "fisher": (2, 0)}.get(trust, (1, 0))
    for start in range(0, len(seen), passes * size):
        yield seen[start + which * size : start + (which + 1) * size]


@pytest.mark.parametrize(("micros", "accumulation"), [(1, "micro"), (3, "micro"), (3, "full")])
def test_twenty_steps_equal_the_papers_equations(
    trust: str, micros: int, accumulation: Literal["micro", "full"]
) -> None:
    net, batches = make_net(), make_batches(20 * micros)
    seen = inputs_seen(net)
    optimizer = TRAM(
        net.parameters(),
        partial(SGD, lr=LR, momentum=MOMENTUM),
        trust=trust,
        sigma=SIGMA,
        eta=ETA,
        gamma=GAMMA,
        net=net,
        accumulation=accumulation,
    )
    steps = [batches[start : start + micros] for start in range(0, len(batches), micros)]
    for step in steps:
        optimizer.step([closure_of(net, batch) for batch in step])
    size = micros if accumulation == "full" else 1
    blocks = [[step] if accumulation == "full" else [[batch] for batch in step] for step in steps]
    expected = hand_training(trust, make_net(), blocks, shaken_inputs(trust, seen, size))
    for name, weight in net.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-9, atol=1e-11)


def run_steps(net: nn.Module, optimizer: Any, batches: Sequence[Batch]) -> None:
    for batch in batches:
        optimizer.step(closure_of(net, batch))


def third_step(trust: str, **options: Any) -> tuple[Watched, TRAM, Batch]:
    """The passes of a third step; the first two moved the weights."""
    net, batches = make_net(), make_batches(3)
    optimizer = TRAM(net.parameters(), partial(SGD, lr=LR), trust=trust, sigma=SIGMA, net=net, **options)
    run_steps(net, optimizer, batches[:2])
    watched = Watched(net, closure_of(net, batches[2]))
    optimizer.step(watched)
    return watched, optimizer, batches[2]


def perturbation_of(watched: Watched) -> Tensor:
    return torch.cat([(watched.weights[-1][name] - weight).flatten() for name, weight in watched.weights[0].items()])


def test_it_climbs_along_squared_weights_times_gradient_and_as_far_as_the_distance(measuring: str) -> None:
    watched, optimizer, batch = third_step(measuring)
    w = torch.cat([weight.flatten() for weight in watched.weights[0].values()])
    g = torch.cat([part.flatten() for part in hand_gradient(watched.net, watched.weights[0], [batch]).values()])
    eps = perturbation_of(watched)
    assert F.cosine_similarity(eps, w**2 * g, dim=0).item() == pytest.approx(1, abs=1e-9)
    d = hand_divergence(watched.logits[1], watched.logits[0])
    assert d > 1e-4
    assert (eps / w).norm().item() == pytest.approx(d.item(), rel=1e-7)
    assert optimizer.distance == pytest.approx(d.item(), rel=1e-9)


def test_the_earlier_weights_are_those_of_the_step_before_or_the_first_ones() -> None:
    net, batches = make_net(), make_batches(3)
    for trust in ("previous", "initial"):
        net = make_net()
        optimizer = TRAM(net.parameters(), partial(SGD, lr=LR), trust=trust, net=net)
        before = []
        for batch in batches:
            before.append(weights_of(net))
            watched = Watched(net, closure_of(net, batch))
            optimizer.step(watched)
        assert_bitwise(watched.weights[0], before[2])
        assert_bitwise(watched.weights[1], before[1 if trust == "previous" else 0])


def test_the_first_weights_are_those_before_the_first_step_and_not_before_loading() -> None:
    net, batches = make_net(), make_batches(2)
    optimizer = TRAM(net.parameters(), partial(SGD, lr=LR), trust="initial", net=net)
    with torch.no_grad():
        net[0].weight.mul_(2)
    loaded = weights_of(net)
    run_steps(net, optimizer, batches[:1])
    watched = Watched(net, closure_of(net, batches[1]))
    optimizer.step(watched)
    assert_bitwise(watched.weights[1], loaded)


def test_the_first_step_is_a_plain_one_where_there_are_no_earlier_weights() -> None:
    for trust in ("previous", "initial"):
        results = []
        for make in (Plain, partial(TRAM, trust=trust)):
            net, batches = make_net(torch.float32), make_batches(1, torch.float32)
            run_steps(net, make(net.parameters(), BASES["SGD"], net=net), batches)
            results.append(weights_of(net))
        assert_bitwise(*results)


def test_it_climbs_against_the_loss_that_is_turned_round() -> None:
    # the published code never multiplies by the gradient: its direction would be the same
    found = []
    for sign in (1, -1):
        net, [batch] = make_net(), make_batches(1)

        def closure(net: nn.Module = net, batch: Batch = batch, sign: int = sign) -> tuple[Tensor, Tensor]:
            logits = net(batch[0])
            return sign * F.cross_entropy(logits, batch[1]), logits

        watched = Watched(net, closure)
        TRAM(net.parameters(), partial(SGD, lr=LR), trust="noise", net=net).step(watched)
        found.append(perturbation_of(watched))
    torch.testing.assert_close(found[0], -found[1], rtol=1e-6, atol=1e-12)
    assert found[0].norm() > 0


def test_the_distance_depends_neither_on_the_batchs_size_nor_on_the_number_of_classes() -> None:
    # the published code divides by batch * classes * batch
    def distance(repeats: int, more_classes: int) -> float:
        net, batches = make_net(), make_batches(2)
        optimizer = TRAM(net.parameters(), partial(SGD, lr=LR), net=net)
        for x, y in [(x.repeat(repeats, 1), y.repeat(repeats)) for x, y in batches]:

            def closure(x: Tensor = x, y: Tensor = y) -> tuple[Tensor, Tensor]:
                logits = net(x)
                padded = torch.cat([logits, logits.new_full((len(x), more_classes), -1e3)], dim=1)
                return F.cross_entropy(padded, y), padded

            optimizer.step(closure)
        return optimizer.distance.item()

    expected = distance(1, 0)
    assert expected > 1e-4
    assert distance(4, 0) == pytest.approx(expected, rel=1e-9)
    assert distance(1, 50) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("trust", ["previous", "initial"])
def test_pixels_are_learned_from_as_a_batch_of_samples_would_be(trust: str) -> None:
    results = []
    for image in (False, True):
        torch.manual_seed(0)
        net = (nn.Conv2d(2, 3, 1) if image else nn.Linear(2, 3)).double()
        with torch.no_grad():
            for param in net.parameters():
                param.copy_(torch.randn(param.numel(), dtype=torch.float64).view_as(param))
        optimizer = TRAM(net.parameters(), partial(SGD, lr=LR), trust=trust, net=net)
        for _ in range(6):
            x, y = torch.randn(2, 2, 4, 3, dtype=torch.float64), torch.randint(0, 3, (2, 4, 3))
            flat = (x.movedim(1, -1).reshape(-1, 2), y.flatten())
            optimizer.step(closure_of(net, (x, y) if image else flat))
        assert optimizer.distance > 1e-3
        results.append(torch.cat([param.detach().flatten() for param in net.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_rho_of_zero_is_the_base_bit_for_bit(trust: str) -> None:
    for base in BASES.values():
        results = []
        for make in (None, partial(TRAM, trust=trust, rho=0.0)):
            net, batches = make_net(torch.float32), make_batches(20, torch.float32)
            if make is None:
                train_plainly(net, base, batches)
            else:
                run_steps(net, make(net.parameters(), base, net=net), batches)
            results.append(weights_of(net))
        assert_bitwise(*results)


def train_plainly(net: nn.Module, base: Callable[..., Optimizer], batches: Sequence[Batch]) -> None:
    reference = base(net.parameters())
    for x, y in batches:
        reference.zero_grad()
        F.cross_entropy(net(x), y).backward()
        reference.step()


def test_a_tiny_rho_is_close_to_the_base(trust: str) -> None:
    net, other, batches = make_net(), make_net(), make_batches(20)
    train_plainly(net, BASES["SGD"], batches)
    run_steps(other, TRAM(other.parameters(), BASES["SGD"], trust=trust, rho=1e-9, net=other), batches)
    for one, two in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-5)
        assert not torch.equal(one, two), "it did climb"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learning_rate_of_zero_restores_bit_for_bit(trust: str, dtype: torch.dtype) -> None:
    net, batches = make_net(dtype), make_batches(6, dtype)
    optimizer = TRAM(net.parameters(), partial(SGD, lr=LR), trust=trust, rho=100.0, net=net)
    run_steps(net, optimizer, batches[:3])
    before = weights_of(net)
    optimizer.param_groups[0]["lr"] = 0.0
    watched = Watched(net, closure_of(net, batches[3]))
    optimizer.step(watched)
    assert any(not torch.equal(watched.weights[-1][name], before[name]) for name in before), "it climbed"
    run_steps(net, optimizer, batches[4:])
    assert_bitwise(weights_of(net), before)


@pytest.mark.parametrize("bad_pass", [1, 2, 3])
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_pass_that_is_not_finite_leaves_the_weights(trust: str, bad_pass: int, value: float) -> None:
    if bad_pass == 3 and trust == "fisher":
        bad_pass = 2  # it has no third
    net, batches = make_net(torch.float32), make_batches(6, torch.float32)
    optimizer = TRAM(net.parameters(), BASES["SGD"], trust=trust, net=net)
    run_steps(net, optimizer, batches[:3])
    before, state, calls = weights_of(net), copy.deepcopy(optimizer.state_dict()), []

    def closure() -> tuple[Tensor, Tensor]:
        calls.append(weights_of(net))
        logits = net(batches[3][0]) * (value if len(calls) == bad_pass else 1.0)
        return F.cross_entropy(logits, batches[3][1]), logits

    optimizer.step(closure)
    assert_bitwise(weights_of(net), before)
    assert all(weight.isfinite().all() for call in calls for weight in call.values()), "no pass sees broken weights"
    assert optimizer.skipped_steps == 1
    after = optimizer.state_dict()
    for key in ("state", "base"):
        torch.testing.assert_close(after[key], state[key], rtol=0, atol=0)
    run_steps(net, optimizer, batches[4:])
    assert optimizer.skipped_steps == 1
    assert all(weight.isfinite().all() for weight in net.parameters())


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_pass_that_raises_leaves_the_weights(trust: str, call: int) -> None:
    net, batches = make_net(), make_batches(3)
    optimizer = TRAM(net.parameters(), BASES["SGD"], trust=trust, net=net)
    run_steps(net, optimizer, batches[:2])
    before, calls = weights_of(net), []

    def closure() -> tuple[Tensor, Tensor]:
        calls.append(None)
        if len(calls) == min(call, 2 if trust == "fisher" else 3):
            raise RuntimeError("the disk is full")
        return closure_of(net, batches[2])()

    with pytest.raises(RuntimeError, match="the disk is full"):
        optimizer.step(closure)
    assert_bitwise(weights_of(net), before)
    assert not net._forward_pre_hooks


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_stopped_and_loaded_equals_never_stopped(trust: str, base: Callable[..., Optimizer]) -> None:
    batches = make_batches(12, torch.float32)

    def build() -> tuple[nn.Module, TRAM]:
        net = make_net(torch.float32)
        groups = [{"params": net[0].parameters()}, {"params": net[3].parameters(), "perturb": False}]
        return net, TRAM(groups, base, trust=trust, sigma=SIGMA, net=net)

    net, optimizer = build()
    run_steps(net, optimizer, batches[:5])
    saved = [copy.deepcopy(thing.state_dict()) for thing in (net, optimizer)]
    other, resumed = build()
    for thing, state in zip((other, resumed), saved, strict=True):
        thing.load_state_dict(state)
    for again, made in ((net, optimizer), (other, resumed)):
        run_steps(again, made, batches[5:])
    assert_bitwise(weights_of(net), weights_of(other))


@pytest.mark.parametrize(
    ("trust", "first", "later"),
    [("previous", (2, 2), (3, 2)), ("initial", (2, 2), (3, 2)), ("noise", (3, 2), (3, 2)), ("fisher", (2, 2), (2, 2))],
)
def test_it_takes_as_many_passes_as_the_paper_says(trust: str, first: tuple[int, int], later: tuple[int, int]) -> None:
    net, batches = make_net(), make_batches(3)
    counts = {"forward": 0, "backward": 0}
    net.register_forward_hook(lambda *_: counts.update(forward=counts["forward"] + 1))
    net.register_full_backward_hook(lambda *_: counts.update(backward=counts["backward"] + 1))
    optimizer = TRAM(net.parameters(), BASES["SGD"], trust=trust, net=net)
    for index, batch in enumerate(batches):
        counts.update(forward=0, backward=0)
        batch[0].requires_grad_()  # or torch's backward hook is not called at the first layer
        optimizer.step(closure_of(net, batch))
        assert (counts["forward"], counts["backward"]) == (later if index else first)


def test_running_statistics_see_the_batch_once(trust: str) -> None:
    # a learning rate of 0 keeps the activations of both runs alike
    found, batches = [], make_batches(4)
    for make in (Plain, partial(TRAM, trust=trust, sigma=1e-9, **({} if trust == "fisher" else {"min_distance": 1.0}))):
        net = make_net(middle=nn.BatchNorm1d(8))
        run_steps(net, make(net.parameters(), partial(SGD, lr=0.0), net=net), batches)
        found.append(dict(net.named_buffers()))
    assert found[1]["1.num_batches_tracked"] == 4
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-7, atol=1e-8)


def test_both_looks_drop_out_the_same_units(measuring: str) -> None:
    # with other masks, the distance of equal weights would be far from 0
    net, batches = make_net(middle=nn.Dropout(0.5)), make_batches(2)
    optimizer = TRAM(net.parameters(), partial(SGD, lr=0.0), trust=measuring, sigma=1e-9, net=net)
    for batch in batches:
        optimizer.step(closure_of(net, batch))
        assert optimizer.distance < 1e-12
    logits = [net(batches[0][0]) for _ in range(2)]
    assert hand_divergence(*logits) > 1e-3


def test_training_draws_the_numbers_that_it_draws_without_the_third_pass(trust: str) -> None:
    states = []
    for make in (SAM, partial(TRAM, trust=trust)):
        net, batches = make_net(middle=nn.Dropout(0.5)), make_batches(4)
        run_steps(net, make(net.parameters(), BASES["SGD"], net=net), batches)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def make_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1000)


def test_a_scaled_run_equals_an_unscaled_one(trust: str) -> None:
    # a power of two scales float32 gradients exactly
    results = []
    for scaler in (None, make_scaler()):
        net, batches = make_net(torch.float32), make_batches(20, torch.float32)
        optimizer = TRAM(net.parameters(), BASES["AdamW"], trust=trust, scaler=scaler, max_grad_norm=0.5, net=net)
        run_steps(net, optimizer, batches)
        results.append(weights_of(net))
    for name, weight in results[0].items():
        torch.testing.assert_close(results[1][name], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad_pass", [1, 2])
def test_an_overflow_in_either_pass_backs_off_and_keeps_the_weights(trust: str, bad_pass: int) -> None:
    net, [batch] = make_net(torch.float32), make_batches(1, torch.float32)
    scaler, calls, before = make_scaler(), [], weights_of(net)
    optimizer = TRAM(net.parameters(), BASES["SGD"], trust=trust, scaler=scaler, net=net)

    def closure() -> tuple[Tensor, Tensor]:
        loss, logits = closure_of(net, batch)()
        calls.append(loss.requires_grad)
        return loss * (1e38 * 10 if calls.count(True) == bad_pass else 1), logits

    optimizer.step(closure)
    assert_bitwise(weights_of(net), before)
    assert (scaler.get_scale(), optimizer.skipped_steps) == (512, 1)
    optimizer.step(closure)
    assert optimizer.skipped_steps == 1


def test_groups_have_their_own_rho_and_unperturbed_ones_count_in_the_distance_alone() -> None:
    net, batches = make_net(), make_batches(2)
    groups = [
        {"params": [net[0].weight]},
        {"params": [net[0].bias], "rho": 3.0},
        {"params": net[3].parameters(), "perturb": False},
    ]
    optimizer = TRAM(groups, partial(SGD, lr=LR), net=net)
    run_steps(net, optimizer, batches[:1])
    watched = Watched(net, closure_of(net, batches[1]))
    optimizer.step(watched)
    earlier, w = watched.weights[1], watched.weights[0]
    assert not torch.equal(earlier["3.weight"], w["3.weight"]), "the network of the step before is the whole one"
    d = hand_divergence(functional_call(net, earlier, batches[1][0]), functional_call(net, w, batches[1][0]))
    g = hand_gradient(net, w, [batches[1]])
    length = sum(((w[name] * g[name]) ** 2).sum() for name in ("0.weight", "0.bias")) ** 0.5
    for name, rho in {"0.weight": 1, "0.bias": 3, "3.weight": 0, "3.bias": 0}.items():
        torch.testing.assert_close(watched.weights[-1][name] - w[name], rho * d * w[name] ** 2 * g[name] / length)


def test_the_distance_can_be_bounded(measuring: str) -> None:
    for bounds, factor in (({"max_distance": 1e-5}, 1e-5), ({"min_distance": 0.25}, 0.25)):
        watched, optimizer, _ = third_step(measuring, **bounds)
        eps = perturbation_of(watched) / torch.cat([weight.flatten() for weight in watched.weights[0].values()])
        assert eps.norm().item() == pytest.approx(factor, rel=1e-6)
        assert optimizer.distance.item() == pytest.approx(factor)


def test_only_the_second_look_is_shaken() -> None:
    net, batches = make_net(), make_batches(2)
    seen = inputs_seen(net)
    run_steps(net, TRAM(net.parameters(), BASES["SGD"], trust="noise", sigma=SIGMA, net=net), batches)
    for index, (x, _) in enumerate(batches):
        clean, shaken, climbed = seen[3 * index : 3 * index + 3]
        assert torch.equal(clean, x)
        assert torch.equal(climbed, x)
        assert (shaken - x).std().item() == pytest.approx(SIGMA, rel=0.5)
    assert not torch.allclose(seen[1] - batches[0][0], seen[4] - batches[1][0]), "each step draws anew"


def test_the_fisher_form_returns_the_loss_at_the_shaken_input() -> None:
    net, [batch] = make_net(), make_batches(1)
    seen, before = inputs_seen(net), weights_of(net)
    loss = TRAM(net.parameters(), BASES["SGD"], trust="fisher", sigma=SIGMA, net=net).step(closure_of(net, batch))
    torch.testing.assert_close(loss, F.cross_entropy(functional_call(make_net(), before, seen[0]), batch[1]))
    assert not torch.equal(seen[0], batch[0])
    assert torch.equal(seen[1], batch[0])


@pytest.mark.parametrize("trust", ["noise", "fisher"])
def test_tokens_are_shaken_at_the_embedding(trust: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 5))
    tokens, following = torch.randint(0, 10, (3, 7)), torch.randint(0, 5, (3, 7))
    optimizer = TRAM(net.parameters(), BASES["SGD"], trust=trust, noise_at=net[0], net=net)

    def closure() -> tuple[Tensor, Tensor]:
        logits = net(tokens).movedim(-1, 1)
        return F.cross_entropy(logits, following), logits

    first = optimizer.step(closure)
    for _ in range(30):
        last = optimizer.step(closure)
    assert last < first
    assert trust == "fisher" or optimizer.distance > 0


def test_two_channels_that_are_probabilities_of_their_own() -> None:
    net, batches = make_net(), make_batches(2)
    optimizer = TRAM(net.parameters(), partial(SGD, lr=LR), form="sigmoid", net=net)
    for x, y in batches:

        def closure(x: Tensor = x, y: Tensor = y) -> tuple[Tensor, Tensor]:
            logits = net(x)
            return F.binary_cross_entropy_with_logits(logits, F.one_hot(y, 4).double()), logits

        watched = Watched(net, closure)
        optimizer.step(watched)
    p, q = (torch.sigmoid(watched.logits[index]) for index in (1, 0))
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).mean()
    torch.testing.assert_close(optimizer.distance, expected)


def test_the_finest_logits_beside_a_label_serve_under_deep_supervision() -> None:
    found = []
    for wrap in (lambda logits, y: logits, lambda logits, y: ([logits, logits[:1]], y)):
        net, batches = make_net(), make_batches(4)
        optimizer = TRAM(net.parameters(), partial(SGD, lr=LR), net=net)
        for batch in batches:
            loss_and_logits = closure_of(net, batch)

            def closure(
                inner: Closure = loss_and_logits, y: Tensor = batch[1], wrap: Callable[..., Any] = wrap
            ) -> tuple[Tensor, Any]:
                loss, logits = inner()
                return loss, wrap(logits, y)

            optimizer.step(closure)
        found.append(weights_of(net))
    assert_bitwise(*found)


def test_another_loss_may_be_climbed() -> None:
    net, [batch] = make_net(), make_batches(1)

    def closure() -> tuple[Tensor, Any]:
        logits = net(batch[0])
        return F.cross_entropy(logits, batch[1]), logits

    watched, ascent = Watched(net, closure), OutputBiasForgetting()
    optimizer = TRAM(net.parameters(), partial(SGD, lr=LR), trust="noise", net=net)
    optimizer.step(watched, ascent=lambda logits: ascent((logits, batch[1])))
    w = watched.weights[0]
    leaves = {name: weight.clone().requires_grad_() for name, weight in w.items()}
    target = ascent((functional_call(net, leaves, (batch[0],)), batch[1]))
    g = torch.cat([part.flatten() for part in torch.autograd.grad(target, list(leaves.values()))])
    flat = torch.cat([weight.flatten() for weight in w.values()])
    assert F.cosine_similarity(perturbation_of(watched), flat**2 * g, dim=0).item() == pytest.approx(1, abs=1e-9)


def test_an_outer_autocast_does_not_see_todays_weights_for_the_earlier_ones() -> None:
    net = nn.Linear(4, 4, bias=False)
    x, y, outputs = torch.eye(4), torch.arange(4), []

    def closure() -> tuple[Tensor, Tensor]:
        logits = net(x)
        outputs.append(logits.detach().float())
        return F.cross_entropy(logits.float(), y), logits

    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer = TRAM(net.parameters(), partial(SGD, lr=10.0), net=net)
        optimizer.step(closure)
        optimizer.step(closure)
    assert torch.equal(outputs[3], outputs[0])
    assert not torch.equal(outputs[3], outputs[2])
    assert not torch.equal(outputs[4], outputs[2]), "nor afterwards for the climbed ones"


def test_it_learns(trust: str) -> None:
    net, [batch, *_] = make_net(torch.float32), make_batches(1, torch.float32)
    optimizer = TRAM(net.parameters(), BASES["SGD"], trust=trust, net=net)
    losses = [optimizer.step(closure_of(net, batch)) for _ in range(150)]
    assert losses[-1] < 0.2 * losses[0]


def test_a_closure_without_logits_is_refused_before_anything_moves(measuring: str) -> None:
    net, [(x, y)] = make_net(), make_batches(1)
    before = weights_of(net)
    optimizer = TRAM(net.parameters(), BASES["SGD"], trust=measuring, net=net)
    with pytest.raises(UsageError, match=r"needs the network's logits .* return \(loss, logits\)"):
        optimizer.step(lambda: F.cross_entropy(net(x), y))
    assert_bitwise(weights_of(net), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust": "theta"}, "trust must be one of previous, initial, noise, fisher, got 'theta'"),
        ({"trust": "noise", "sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
        ({"trust": "noise", "net": None}, "pass net=, or the submodule as noise_at="),
        ({"noise_at": nn.Identity()}, 'trust="previous" adds no noise; leave noise_at out'),
        ({"min_distance": -1.0}, "0 <= min_distance <= max_distance, got -1.0 and None"),
        ({"min_distance": 2.0, "max_distance": 1.0}, "got 2.0 and 1.0"),
        ({"trust": "fisher", "max_distance": 1.0}, "measures no distance, so there is none to bound; gamma"),
        ({"trust": "fisher", "eta": -1.0}, "eta must not be negative and gamma must be positive, both finite, got -1"),
        ({"trust": "fisher", "gamma": 0.0}, r"got 0\.1 and 0\.0"),
        ({"rho": -1.0}, "rho must be finite and not negative, got -1.0"),
    ],
)
def test_arguments_of_no_use_are_refused(options: dict[str, Any], message: str) -> None:
    net = make_net()
    with pytest.raises(ValueError, match=message):
        TRAM(net.parameters(), BASES["SGD"], **({"net": net} | options))
