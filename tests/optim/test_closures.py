"""Closures of a step: lists, scalers, ascent losses and added scalars."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from tests.optim.shared_parts import ADAMW, LAYER_NORM, MEASURING, MOMENTUM, ONE_PASS
from uumamba.optim import MSAM, SAM, TRAM, Plain


@pytest.mark.parametrize("accumulation", ["micro", "full"])
def test_one_closure_in_a_list_is_that_closure(sharpness_aware: str, accumulation: str, training: Any) -> None:
    runs = [training(sharpness_aware), training(sharpness_aware, accumulation=accumulation)]
    for batch in runs[0].batches(4):
        runs[0].step(runs[0].closure(batch))
        runs[1].step([runs[1].closure(batch)])
    assert torch.equal(runs[0].weights, runs[1].weights)


def test_full_accumulation_is_one_step_on_the_whole_batch(member: str, training: Any) -> None:
    if member in ("TRAM noise", "TRAM fisher", "SAF"):
        return  # each call has noise of its own, and each epoch one output of a sample
    parts, whole = (training(member, middle=LAYER_NORM, accumulation="full") for _ in "ab")
    for first, second in zip(parts.batches(8)[::2], parts.batches(8)[1::2], strict=True):
        found = parts.step([parts.closure(first), parts.closure(second)])
        both = {key: torch.cat([first[key], second[key]]) for key in first}
        torch.testing.assert_close(found, whole.step(whole.closure(both)))
    torch.testing.assert_close(parts.weights, whole.weights, rtol=1e-9, atol=1e-11)


def penalty(net: nn.Module, image: Tensor) -> Tensor:
    return net(image).pow(2).mean()


@pytest.mark.parametrize("accumulation", ["micro", "full"])
def test_running_statistics_count_each_batch_once(member: str, accumulation: str, training: Any) -> None:
    # a learning rate of 0 keeps the activations of both runs alike, and a tiny rho those of members with one pass
    cumulative = partial(nn.BatchNorm1d, 8, momentum=None)
    small = {"sigma": 1e-9} if "TRAM" in member else {"rho": 1e-9} if member in ONE_PASS else {}
    options = {"noise": {"min_distance": 1.0}}.get(member.removeprefix("TRAM "), {}) | small
    still = partial(SGD, lr=0.0, momentum=0.9)
    run = training(member, still, middle=cumulative, accumulation=accumulation, **options)
    plain = training("Plain", still, middle=cumulative)
    batches = run.batches(6)
    for each in (run, plain):
        for pair in (batches[:2], batches[2:4], batches[4:]):
            added = partial(penalty, each.net, batches[0]["image"])
            each.step([each.closure(batch) for batch in pair], at_weights=added)
    assert run.net[1].num_batches_tracked == 6
    for found, expected in zip(run.net.buffers(), plain.net.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-8)


def test_a_scaled_run_equals_an_unscaled_one_bit_for_bit(member: str, training: Any) -> None:
    # a power of two scales every gradient, product and norm exactly; the scale grows three times meanwhile
    results = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)):
        run = training(member, ADAMW, scaler=scaler, max_grad_norm=0.5)
        losses = run.train(run.batches(9))
        results.append([run.weights, torch.stack(losses)])
    assert scaler.get_scale() == 512
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_disabled_scaler_is_none(training: Any) -> None:
    assert training("SAM", scaler=torch.amp.GradScaler("cpu", enabled=False)).optimizer.scaler is None


def torch_style(run: Any, batch: Any) -> Callable[[], Any]:
    """Make a closure that also runs backward, as for torch's optimizers."""
    inner = run.closure(batch)

    def closure() -> Any:
        run.optimizer.zero_grad()
        result = inner()
        (result[0] if isinstance(result, tuple) else result).backward()
        return result

    return closure


def test_a_torch_style_closure_is_accepted(member: str, training: Any) -> None:
    if member in (*MEASURING, "output-bias forgetting"):
        return  # such closures fit neither passes without gradients nor ascent losses
    ours, torchs = training(member), training(member)
    first, second, third = ours.batches(3)
    for run, make in ((ours, type(ours).closure), (torchs, torch_style)):
        run.step(make(run, first))
        run.step([make(run, second), make(run, third)])
    torch.testing.assert_close(torchs.weights, ours.weights, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["SAM", "output-bias forgetting"])
def test_a_closure_that_ran_backward_is_rejected_with_a_scaler_or_an_ascent(
    name: str, training: Any, refused: Any
) -> None:
    run = training(name, scaler=torch.amp.GradScaler("cpu") if name == "SAM" else None)
    with refused("closure", got="a closure that ran backward itself"):
        run.step(torch_style(run, run.batches(1)[0]))


@pytest.mark.parametrize("scaled", [False, True])
def test_at_weights_adds_a_gradient_at_the_original_weights(member: str, scaled: bool, training: Any) -> None:
    # Scalars are None, one, or a list with None; not every scalar depends on all parameters.
    results = []
    for number in range(4):
        run = training(member, scaler=torch.amp.GradScaler("cpu", init_scale=64.0) if scaled else None)
        places: list[Tensor] = []

        def squares(run: Any = run, places: Any = places) -> Tensor:
            places.append(run.weights)
            return sum(param.square().sum() for param in run.net.parameters())

        def fourth_powers(net: nn.Module = run.net) -> Tensor:
            return net[0].weight.pow(4).sum()

        def both(one: Any = squares, other: Any = fourth_powers) -> Tensor:
            return one() + other()

        added = [None, [None], both, (fourth_powers, None, squares)][number]
        start = run.weights
        for index, batch in enumerate(run.batches(3)):
            before = run.weights
            run.step(run.closure(batch), at_weights=added)
            assert number < 2 or torch.equal(places[index], before)
            if index == 0:
                results.append((run.weights, start))
        results[-1] = (*results[-1], run.weights)
    assert torch.equal(results[0][2], results[1][2])
    torch.testing.assert_close(results[2][2], results[3][2], rtol=1e-12, atol=1e-14)
    start = results[0][1]
    gradient = 2 * start + torch.cat([4 * start[:40] ** 3, torch.zeros(60, dtype=torch.float64)])
    torch.testing.assert_close(results[2][0], results[0][0] - 0.05 * gradient)  # the first step has no momentum yet


def test_the_graph_of_an_added_scalar_is_freed_before_the_next_is_computed() -> None:
    weight = nn.Parameter(torch.ones(3))
    alive: list[weakref.ref[Tensor]] = []
    left: list[int] = []

    def scalar() -> Tensor:
        left.append(sum(each() is not None for each in alive))
        doubled = 2 * weight
        alive.append(weakref.ref(doubled))
        return doubled.square().sum()

    Plain([weight], MOMENTUM).step(lambda: weight.sum(), at_weights=[scalar, scalar, scalar])
    assert left == [0, 0, 0]


@pytest.mark.parametrize("name", ["SAM", "ASAM", "GSAM", "FriendlySAM", "TRAM noise", "norm layers only"])
def test_an_ascent_loss_is_perturbed_along_and_the_loss_descended(name: str, training: Any) -> None:
    def against(outputs: tuple[Tensor, Tensor]) -> Tensor:
        return -F.cross_entropy(*outputs)

    moves = []
    for ascent in (None, against):
        run = training(name, **({"alpha": 0.0} if name == "GSAM" else {}))
        [batch] = run.batches(1)
        before = run.weights
        loss = run.step(run.closure(batch), ascent=ascent)
        moves.append(run.seen[-1] - before)
    assert loss > 0, "the task's loss is returned"
    assert moves[0].any()
    torch.testing.assert_close(moves[1], -moves[0], rtol=1e-9, atol=1e-15)
    for param, at in zip(run.net.parameters(), run.seen[-1].split([40, 8, 8, 8, 32, 4]), strict=True):
        with torch.no_grad():
            param.copy_(at.view_as(param))
    gradients = torch.autograd.grad(
        F.cross_entropy(run.net(batch["image"]), batch["label"]), list(run.net.parameters())
    )
    expected = before - 0.05 * torch.cat([part.flatten() for part in gradients])
    after = before - 0.05 * torch.cat(
        [run.optimizer.base.state[p]["momentum_buffer"].flatten() for p in run.net.parameters()]
    )
    torch.testing.assert_close(after, expected)


@pytest.mark.parametrize("name", ["LookSAM", "LookSAM triggered", "MSAM", "StaleSAM", "SAGM"])
def test_an_ascent_loss_is_rejected_if_the_step_would_descend_with_its_gradient(
    name: str, training: Any, refused: Any
) -> None:
    run, ascent = training(name), len
    before = run.weights
    with refused("ascent", got=ascent):
        run.step(run.closure(run.batches(1)[0]), ascent=ascent)
    assert torch.equal(run.weights, before)


@pytest.mark.parametrize("make", [partial(SAM, rho=2.0), TRAM], ids=["SAM", "TRAM"])
def test_an_outer_autocast_keeps_no_copies_of_other_weights(make: Any) -> None:
    net = nn.Linear(4, 4, bias=False)
    x, outputs = torch.eye(4), []

    def closure() -> tuple[Tensor, Tensor]:
        logits = net(x)
        outputs.append(logits.detach().float())
        # SAM's first step is skipped: the base's step does not clear autocast's copies of the perturbed weights
        factor = float("inf") if make is not TRAM and len(outputs) == 2 else 1.0
        return F.cross_entropy(logits.float(), torch.arange(4)) * factor, logits

    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer = make(net.parameters(), partial(SGD, lr=10.0), net=net)
        optimizer.step(closure)
        optimizer.step(closure)
    if make is TRAM:
        first, original, earlier, perturbed = outputs[0], outputs[2], outputs[3], outputs[4]
        assert torch.equal(earlier, first), "the weights of the step before"
        assert not torch.equal(earlier, original)
    else:
        first, perturbed, original, _ = outputs
        assert torch.equal(original, first), "the restored weights"
        assert (perturbed - first).norm().item() == pytest.approx(2.0, rel=0.02)
    assert not torch.equal(perturbed, original)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SAM", "MSAM", "SAGM", "TRAM previous"])
def test_a_compiled_network_trains_alike(name: str, training: Any) -> None:
    plain, compiled = training(name), training(name)
    wrapped = torch.compile(compiled.net, backend="aot_eager")
    plain.train(plain.batches(4))
    for batch in compiled.batches(4):

        def closure(batch: Any = batch) -> tuple[Tensor, Tensor]:
            logits = wrapped(batch["image"])
            return F.cross_entropy(logits, batch["label"]), logits

        compiled.step(closure)
    torch.testing.assert_close(compiled.weights, plain.weights, rtol=1e-9, atol=1e-11)
    for found, expected in zip(compiled.net.buffers(), plain.net.buffers(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("key", "closure", "options"),
    [
        ("closure", lambda weight: [], {}),
        ("closure", lambda weight: lambda: 1.0, {}),
        ("closure", lambda weight: lambda: weight * 2, {}),
        ("closure", lambda weight: lambda: weight.detach().sum(), {}),
        ("params", lambda weight: lambda: torch.ones((), requires_grad=True) * 2, {}),
        ("at_weights", lambda weight: weight.sum, {"at_weights": lambda: torch.ones((), requires_grad=True) * 2}),
    ],
    ids=["none", "number", "matrix", "detached", "elsewhere", "at_weights elsewhere"],
)
@pytest.mark.parametrize("make", [Plain, SAM, MSAM])
def test_a_closure_without_a_loss_is_rejected(make: Any, key: str, closure: Any, options: Any, refused: Any) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    with refused(key):
        make([weight], MOMENTUM).step(closure(weight), **options)
    assert torch.equal(weight, torch.ones(2, 2))
