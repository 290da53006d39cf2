"""TRAM in its four forms against the paper's equations, in float64."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import SGD

from tests.optim_members import torch_divergence
from uumamba.optim import TRAM

Batch = dict[str, Tensor]
Weights = dict[str, Tensor]
LR, MOMENTUM, SIGMA, ETA, GAMMA = 0.2, 0.9, 0.3, 0.1, 0.1
FORMS = ("previous", "initial", "noise", "fisher")
BASE = partial(SGD, lr=LR, momentum=MOMENTUM)
LAYER_NORM = partial(nn.LayerNorm, 8)


@pytest.fixture(params=FORMS[:3])
def measuring(request: pytest.FixtureRequest) -> str:
    """The forms that measure a distance."""
    return request.param


def weights_of(net: nn.Module) -> Weights:
    return {name: param.detach().clone() for name, param in net.named_parameters()}


def flat(weights: Weights) -> Tensor:
    return torch.cat([weight.flatten() for weight in weights.values()])


def inputs_seen(net: nn.Module) -> list[Tensor]:
    """Return a list that collects the inputs of the network."""
    seen: list[Tensor] = []
    net.register_forward_hook(lambda module, args, output: seen.append(args[0].detach().clone()))
    return seen


def hand_gradient(net: nn.Module, weights: Weights, batches: Sequence[Batch]) -> Weights:
    leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
    losses = [F.cross_entropy(functional_call(net, leaves, (batch["image"],)), batch["label"]) for batch in batches]
    found = torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def hand_perturbed(
    trust: str, net: nn.Module, weights: Weights, earlier: Weights, batches: Sequence[Batch], noisy: Sequence[Tensor]
) -> Weights:
    """Compute the perturbed weights of one block of micro-batches."""
    if trust == "fisher":
        g = hand_gradient(net, weights, [batch | {"image": x} for x, batch in zip(noisy, batches, strict=True)])
        inverse = {name: 1 / (1 + ETA * g[name] ** 2) for name in g}
        length = sum((g[name] ** 2 * inverse[name]).sum() for name in g) ** 0.5
        return {name: weights[name] + GAMMA * inverse[name] * g[name] / length for name in g}
    distances = []
    for batch, x in zip(batches, noisy, strict=True):
        other = (weights, x) if trust == "noise" else (earlier, batch["image"])
        now = functional_call(net, weights, (batch["image"],))
        distances.append(torch_divergence(functional_call(net, *other), now))
    d = torch.stack(distances).mean().detach()
    g = hand_gradient(net, weights, batches)
    length = sum(((weights[name].abs() * g[name]) ** 2).sum() for name in g) ** 0.5
    return {name: weights[name] + d * weights[name] ** 2 * g[name] / length for name in g}


def hand_training(
    trust: str, net: nn.Module, steps: Sequence[Sequence[Sequence[Batch]]], noisy: Iterator[Sequence[Tensor]]
) -> Weights:
    """Compute the weights after SGD with momentum.

    A step is a list of blocks, and a block a list of batches with one perturbation.
    """
    weights = weights_of(net)
    first = earlier = weights
    velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for blocks in steps:
        found = []
        for block in blocks:
            perturbed = hand_perturbed(
                trust, net, weights, earlier if trust == "previous" else first, block, next(noisy)
            )
            found.append(hand_gradient(net, perturbed, block))
        mean = {name: torch.stack([gradient[name] for gradient in found]).mean(0) for name in weights}
        velocity = {name: MOMENTUM * velocity[name] + mean[name] for name in weights}
        earlier, weights = weights, {name: weights[name] - LR * velocity[name] for name in weights}
    return weights


def noisy_inputs(trust: str, seen: Sequence[Tensor], size: int) -> Iterator[Sequence[Tensor]]:
    """Yield the noisy inputs of each block of micro-batches."""
    passes, which = {"noise": (3, 1), "fisher": (2, 0)}.get(trust, (1, 0))
    for start in range(0, len(seen), passes * size):
        yield seen[start + which * size : start + (which + 1) * size]


@pytest.mark.parametrize("trust", FORMS)
@pytest.mark.parametrize(("micros", "accumulation"), [(1, "micro"), (3, "micro"), (3, "full")])
def test_ten_steps_equal_the_papers_equations(training: Any, trust: str, micros: int, accumulation: str) -> None:
    options = {"trust": trust, "sigma": SIGMA, "eta": ETA, "gamma": GAMMA, "accumulation": accumulation}
    run = training("TRAM previous", BASE, middle=LAYER_NORM, **options)
    seen, batches = inputs_seen(run.net), run.batches(10 * micros)
    steps = [batches[start : start + micros] for start in range(0, len(batches), micros)]
    for step in steps:
        run.step([run.closure(batch) for batch in step])
    size = micros if accumulation == "full" else 1
    blocks = [[step] if accumulation == "full" else [[batch] for batch in step] for step in steps]
    fresh = training("Plain", middle=LAYER_NORM).net
    expected = hand_training(trust, fresh, blocks, noisy_inputs(trust, seen, size))
    torch.testing.assert_close(run.weights, flat(expected), rtol=1e-9, atol=1e-11)


def take_steps(training: Any, trust: str, number: int = 3, **options: Any) -> tuple[Any, list[Tensor], Tensor]:
    """Return a run, and outputs and perturbation of its last step."""
    run, outputs = training("TRAM previous", BASE, trust=trust, sigma=SIGMA, middle=LAYER_NORM, **options), []
    for batch in run.batches(number):
        outputs.clear()
        run.step(run.closure(batch, lambda call, logits: outputs.append(logits.detach()) or logits))
    return run, outputs, run.seen[-1] - run.seen[0]


def test_the_perturbation_is_as_long_as_the_distance(training: Any, measuring: str) -> None:
    run, outputs, eps = take_steps(training, measuring)
    w = run.seen[0]
    d = torch_divergence(outputs[1], outputs[0])
    assert d > 1e-4
    assert (eps[w != 0] / w[w != 0]).norm().item() == pytest.approx(d.item(), rel=1e-7)
    assert run.optimizer.distance == pytest.approx(d.item(), rel=1e-9)


@pytest.mark.parametrize(("trust", "step"), [("previous", 1), ("initial", 0)])
def test_the_earlier_weights_are_those_before_the_last_or_the_first_step(training: Any, trust: str, step: int) -> None:
    # They are not the weights at construction, before others are loaded.
    run, before = training("TRAM previous", trust=trust), []
    with torch.no_grad():
        run.net[0].weight.mul_(2)
    for batch in run.batches(3):
        before.append(run.weights)
        run.step(run.closure(batch))
    assert torch.equal(run.seen[0], before[2])
    assert torch.equal(run.seen[1], before[step])


@pytest.mark.parametrize("trust", ["previous", "initial"])
def test_the_first_step_is_a_plain_one_where_there_are_no_earlier_weights(training: Any, trust: str) -> None:
    runs = [training("Plain"), training(f"TRAM {trust}")]
    for run in runs:
        run.train(run.batches(1))
    assert torch.equal(runs[0].weights, runs[1].weights)
    assert len(runs[1].seen) == 2


def test_pixels_are_learned_from_as_a_batch_of_samples_would_be() -> None:
    results = []
    for image in (False, True):
        net = (nn.Conv2d(2, 3, 1) if image else nn.Linear(2, 3)).double()
        torch.manual_seed(0)
        with torch.no_grad():
            for param in net.parameters():
                param.copy_(torch.randn(param.numel(), dtype=torch.float64).view_as(param))
        optimizer = TRAM(net.parameters(), partial(SGD, lr=LR), net=net)
        for _ in range(6):
            x, y = torch.randn(2, 2, 4, 3, dtype=torch.float64), torch.randint(0, 3, (2, 4, 3))
            if not image:
                x, y = x.movedim(1, -1).reshape(-1, 2), y.flatten()

            def closure(x: Tensor = x, y: Tensor = y, net: nn.Module = net) -> tuple[Tensor, Tensor]:
                logits = net(x)
                return F.cross_entropy(logits, y), logits

            optimizer.step(closure)
        assert optimizer.distance > 1e-4
        results.append(torch.cat([param.detach().flatten() for param in net.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_dropout_is_the_same_in_both_passes(training: Any, measuring: str) -> None:
    # with other masks, the distance of equal weights would be far from 0
    run = training(f"TRAM {measuring}", partial(SGD, lr=0.0), middle=partial(nn.Dropout, 0.5), sigma=1e-9)
    for batch in run.batches(2):
        run.step(run.closure(batch))
        assert run.optimizer.distance < 1e-12
    assert torch_divergence(*(run.net(batch["image"]) for _ in range(2))) > 1e-3


@pytest.mark.parametrize("trust", FORMS)
def test_training_draws_the_numbers_that_it_draws_without_the_third_pass(training: Any, trust: str) -> None:
    states = []
    for name in ("SAM", f"TRAM {trust}"):
        run = training(name, middle=partial(nn.Dropout, 0.5))
        run.train(run.batches(4))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_groups_without_perturbation_count_only_in_the_distance(training: Any) -> None:
    def groups(net: nn.Module) -> list[dict[str, Any]]:
        still = {"params": [*net[1].parameters(), *net[3].parameters()], "perturb": False}
        return [{"params": [net[0].weight]}, {"params": [net[0].bias], "rho": 3.0}, still]

    run, outputs, eps = take_steps(training, "previous", number=2, groups=groups)
    now, then = (
        {name: part.view_as(param) for (name, param), part in zip(run.net.named_parameters(), parts, strict=True)}
        for parts in (seen.split([40, 8, 8, 8, 32, 4]) for seen in run.seen[:2])
    )
    assert not torch.equal(then["3.weight"], now["3.weight"]), "the network of the step before is the whole one"
    d, batch = torch_divergence(outputs[1], outputs[0]), run.batches(2)[1]
    torch.testing.assert_close(outputs[1], functional_call(run.net, then, (batch["image"],)))
    g = hand_gradient(run.net, now, [batch])
    length = sum(((now[name] * g[name]) ** 2).sum() for name in ("0.weight", "0.bias")) ** 0.5
    factors = dict.fromkeys(now, 0) | {"0.weight": 1, "0.bias": 3}
    torch.testing.assert_close(eps, flat({name: factors[name] * d * now[name] ** 2 * g[name] / length for name in now}))


@pytest.mark.parametrize(("bounds", "expected"), [({"max_distance": 1e-5}, 1e-5), ({"min_distance": 0.25}, 0.25)])
def test_the_distance_can_be_bounded(training: Any, measuring: str, bounds: dict[str, float], expected: float) -> None:
    run, _, eps = take_steps(training, measuring, **bounds)
    w = run.seen[0]
    assert (eps[w != 0] / w[w != 0]).norm().item() == pytest.approx(expected, rel=1e-6)
    assert run.optimizer.distance.item() == pytest.approx(expected)


def test_only_the_second_pass_gets_the_noise(training: Any) -> None:
    run, batches = training("TRAM noise", sigma=SIGMA), training("TRAM noise").batches(2)
    seen = inputs_seen(run.net)
    run.train(batches)
    for index, batch in enumerate(batches):
        clean, noisy, perturbed = seen[3 * index : 3 * index + 3]
        assert torch.equal(clean, batch["image"])
        assert torch.equal(perturbed, batch["image"])
        assert (noisy - clean).std().item() == pytest.approx(SIGMA, rel=0.5)
    assert not torch.allclose(seen[1] - seen[0], seen[4] - seen[3]), "each step draws new noise"


def test_the_fisher_form_returns_the_loss_at_the_noisy_input(training: Any) -> None:
    run = training("TRAM fisher", middle=LAYER_NORM)
    [batch], seen, before = run.batches(1), inputs_seen(run.net), weights_of(run.net)
    loss = run.step(run.closure(batch))
    torch.testing.assert_close(loss, F.cross_entropy(functional_call(run.net, before, (seen[0],)), batch["label"]))
    assert not torch.equal(seen[0], batch["image"])
    assert torch.equal(seen[1], batch["image"])


@pytest.mark.parametrize("trust", ["noise", "fisher"])
def test_tokens_get_the_noise_at_the_embedding(trust: str) -> None:
    net = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 5))
    tokens, following = torch.randint(0, 10, (3, 7)), torch.randint(0, 5, (3, 7))
    optimizer = TRAM(net.parameters(), partial(SGD, lr=0.05), trust=trust, noise_at=net[0], net=net)

    def closure() -> tuple[Tensor, Tensor]:
        logits = net(tokens).movedim(-1, 1)
        return F.cross_entropy(logits, following), logits

    losses = [optimizer.step(closure) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert trust == "fisher" or optimizer.distance > 0


def test_channels_may_be_probabilities_of_their_own(training: Any) -> None:
    run, (now, then, _), _ = take_steps(training, "previous", form="sigmoid")
    p, q = torch.sigmoid(then), torch.sigmoid(now)
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1).mean()
    torch.testing.assert_close(run.optimizer.distance, expected)


@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: (z, torch.zeros(6)), lambda z: ([z, z[:1]], torch.zeros(6))])
def test_a_closure_may_return_logits_with_or_without_a_label(training: Any, wrap: Any) -> None:
    run, expected = training("TRAM previous"), training("TRAM previous")
    expected.train(expected.batches(3))
    for batch in run.batches(3):

        def closure(inner: Any) -> tuple[Tensor, Any]:
            loss, (logits, _) = inner()
            return loss, wrap(logits)

        run.step(partial(closure, run.closure(batch)))
    assert torch.equal(run.weights, expected.weights)


def test_a_closure_without_logits_is_rejected_before_the_weights_change(
    training: Any, measuring: str, refused: Any
) -> None:
    run = training(f"TRAM {measuring}")
    [batch], before = run.batches(1), run.weights
    with refused("closure", got="a loss and outputs of type NoneType"):
        run.step(lambda: run.closure(batch)()[0])
    assert torch.equal(run.weights, before)
