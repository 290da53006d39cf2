"""Promises of every member of the family, around every base."""

import copy
import math
import pickle
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler

from tests.optim_members import OPTIMIZERS
from uumamba import optim
from uumamba.optim import (
    ASAM,
    GSAM,
    MESA,
    MSAM,
    SAF,
    SAGM,
    SAM,
    TRAM,
    AdaptiveTrigger,
    FriendlySAM,
    LookSAM,
    OutputBiasForgetting,
    Plain,
    norm_layers_only,
)
from uumamba.runtime.errors import UsageError

MOMENTUM = partial(SGD, lr=0.05, momentum=0.9)
ADAMW = partial(AdamW, lr=0.01)
BASES = {
    "SGD": partial(SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "AdamW": ADAMW,
    "Lion of another package": partial(pytorch_optimizer.Lion, lr=0.01),
}
OBJECTIVES = ("MESA", "SAF")
ONE_PASS = ("MSAM", "StaleSAM")
MEASURING = ("TRAM previous", "TRAM initial", "TRAM noise")
LAYER_NORM = partial(nn.LayerNorm, 8)


def dropout() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(8), nn.Dropout(0.3))


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> Callable[..., Optimizer]:
    return BASES[request.param]


def two_groups(net: nn.Module) -> list[dict[str, Any]]:
    first = {"params": [*net[0].parameters(), *net[1].parameters()]}
    return [first, {"params": net[3].parameters(), "lr": 0.02, "perturb": False}]


def test_every_exported_optimizer_is_in_the_table() -> None:
    made = {getattr(make, "func", make) for make in OPTIMIZERS.values()}
    exported = {getattr(optim, name) for name in optim.__all__}
    classes = {each for each in exported if isinstance(each, type) and issubclass(each, optim.SharpnessAware)}
    assert classes - {optim.SharpnessAware} == made


@pytest.mark.parametrize("bound", [None, 0.1])
def test_rho_of_zero_is_the_base_bit_for_bit(
    member: str, base: Callable[..., Optimizer], bound: float | None, training: Any
) -> None:
    if member in OBJECTIVES:
        return  # another loss; their files test a weight of 0
    options = {"max_grad_norm": bound} | ({} if member == "Plain" else {"rho": 0.0})
    ours = training(member, base, dtype=torch.float32, middle=dropout, **options)
    theirs = training("Plain", base, dtype=torch.float32, middle=dropout)
    reference = base(ours.member.groups(theirs.net))
    torch.manual_seed(0)
    ours.train(ours.batches(6))
    torch.manual_seed(0)
    for batch in theirs.batches(6):
        reference.zero_grad()
        F.cross_entropy(theirs.net(batch["image"]), batch["label"]).backward()
        if bound is not None:
            nn.utils.clip_grad_norm_([param for group in reference.param_groups for param in group["params"]], bound)
        reference.step()
    assert torch.equal(ours.weights, theirs.weights)


def test_tiny_rho_is_nearly_the_base(sharpness_aware: str, training: Any) -> None:
    # rho of 0 is a shortcut; LookSAM and SAGM differ from the base by a part without rho, 0 with alpha 0
    if sharpness_aware in OBJECTIVES:
        return
    alpha = {"alpha": 0.0} if sharpness_aware.startswith(("LookSAM", "SAGM")) else {}
    near, plain = training(sharpness_aware, rho=1e-9, **alpha), training("Plain")
    near.train(near.batches(10))
    plain.train(plain.batches(10))
    assert not torch.equal(near.weights, plain.weights), "weights were perturbed"
    # ten steps whose gradients differ by about rho
    torch.testing.assert_close(near.weights, plain.weights, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_members_learn_and_restore_weights_bit_for_bit(member: str, dtype: torch.dtype, training: Any) -> None:
    run = training(member, max_grad_norm=1.0, dtype=dtype)
    [batch] = run.batches(1)
    first, *_, last = run.train([batch] * 12)
    assert last < 0.9 * first
    assert run.optimizer.skipped_steps == 0
    assert run.net[0].weight.dtype == dtype
    for group in run.optimizer.param_groups:
        group["lr"] = 0.0
    before, addresses = run.weights, [param.data_ptr() for param in run.net.parameters()]
    run.train([batch] * 2)
    assert torch.equal(run.weights, before)
    assert [param.data_ptr() for param in run.net.parameters()] == addresses, "weights keep their storage"


def test_a_step_returns_the_first_loss_and_takes_the_promised_number_of_passes(member: str, training: Any) -> None:
    run = training(member)
    *earlier, batch = run.batches(5)
    run.train(earlier)
    copied = copy.deepcopy(run.net)
    loss = run.step(run.closure(batch))
    assert len(run.seen) == run.member.passes
    assert not loss.requires_grad
    if member not in (*OBJECTIVES, *ONE_PASS, "TRAM fisher"):
        assert loss == F.cross_entropy(copied(batch["image"]), batch["label"])


def test_a_pass_that_raises_does_not_change_the_weights(member: str, training: Any) -> None:
    run = training(member)
    *earlier, batch = run.batches(5)
    run.train(earlier)
    before, state = run.weights, copy.deepcopy(run.optimizer.base.state_dict()["state"])
    for bad_pass in range(1, run.member.passes + 1):

        def spoil(call: int, logits: Tensor, bad_pass: int = bad_pass) -> Tensor:
            if call == bad_pass:
                raise RuntimeError("the disk is full")
            return logits

        with pytest.raises(RuntimeError, match="the disk is full"):
            run.step(run.closure(batch, spoil))
        assert torch.equal(run.weights, before)
        torch.testing.assert_close(run.optimizer.base.state_dict()["state"], state, rtol=0, atol=0)
        assert not run.net._forward_pre_hooks
    assert member == "Plain" or not torch.equal(run.seen[-1], before), "the last pass is at the perturbed weights"


@pytest.mark.parametrize(("value", "scaled"), [(float("nan"), False), (float("inf"), True)])
def test_a_pass_that_is_not_finite_skips_the_step(member: str, value: float, scaled: bool, training: Any) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0) if scaled else None
    run = training(member, ADAMW, scaler=scaler)
    batches = run.batches(11)
    for bad_pass in range(1, run.member.passes + 1):
        run.train(batches[:4])  # so that the next step of every member has all its passes
        before, state = run.weights, copy.deepcopy(run.optimizer.base.state_dict()["state"])

        def spoil(call: int, logits: Tensor, bad_pass: int = bad_pass) -> Tensor:
            return logits * (value if call == bad_pass else 1.0)

        run.step(run.closure(batches[4], spoil))
        assert torch.equal(run.weights, before)
        assert all(weights.isfinite().all() for weights in run.seen), "no pass is at weights that are not finite"
        torch.testing.assert_close(run.optimizer.base.state_dict()["state"], state, rtol=0, atol=0)
        assert run.optimizer.skipped_steps == bad_pass
        assert scaler is None or scaler.get_scale() == 64 / 2**bad_pass
        run.train(batches[5:7])
        assert run.optimizer.skipped_steps == bad_pass
        assert run.weights.isfinite().all(), "nothing kept is poisoned"
        assert not torch.equal(run.weights, before)


def test_a_loss_that_is_not_finite_skips_the_step_although_its_gradient_is_finite(member: str, training: Any) -> None:
    run = training(member)
    batches = run.batches(3)
    run.train(batches[:1])
    before = run.weights

    def infinite() -> tuple[Tensor, Any]:
        loss, outputs = run.closure(batches[2])() if run.objective is None else (run.closure(batches[2])(), None)
        return loss + float("inf"), outputs

    run.step([run.closure(batches[1]), infinite])
    assert run.optimizer.skipped_steps == 1
    assert torch.equal(run.weights, before)


def test_stopped_and_loaded_equals_never_stopped(member: str, base: Callable[..., Optimizer], training: Any) -> None:
    def build() -> tuple[Any, ...]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=2)
        run = training(member, base, groups=two_groups, max_grad_norm=1.0, scaler=scaler)
        return run, run.net, run.optimizer, lr_scheduler.LambdaLR(run.optimizer, lambda step: 0.95**step), run.objective

    def go_on(run: Any, schedule: Any, batches: Any) -> None:
        for batch in batches:
            run.train([batch])
            schedule.step()

    whole, resumed = build(), build()
    batches = whole[0].batches(8)
    go_on(whole[0], whole[3], batches[:5])
    whole[2].skipped_steps = 3
    saved = [copy.deepcopy(part.state_dict()) for part in whole[1:] if part is not None]
    for part, state in zip(resumed[1:], saved, strict=False):
        part.load_state_dict(state)
    for part in (whole, resumed):
        go_on(part[0], part[3], batches[5:])
    assert torch.equal(whole[0].weights, resumed[0].weights)
    optimizer = resumed[2]
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.param_groups[0]["lr"] == whole[2].param_groups[0]["lr"]
    assert optimizer.skipped_steps == 3
    assert optimizer.scaler.state_dict() == whole[2].scaler.state_dict()
    assert optimizer.scaler.get_scale() == 2.0**5
    assert list(optimizer.state_dict()) == ["state", "param_groups", "base", "scaler", "skipped_steps", "numbers"]


def test_a_copy_trains_on_as_the_original_and_apart_from_it(member: str, training: Any) -> None:
    for copied in (copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))):
        if copied is not copy.deepcopy and member != "Plain":
            break  # rules hold functions of functions, which no pickle takes
        run = training(member)
        lr_scheduler.StepLR(run.optimizer, 2)  # torch's schedulers put a method of the original into the optimizer
        batches = run.batches(6)
        run.train(batches[:3])
        twin = copy.copy(run)
        twin.seen = []
        twin.net, twin.optimizer, twin.objective = copied((run.net, run.optimizer, run.objective))
        before = run.weights
        twin.train(batches[3:])
        assert torch.equal(run.weights, before)
        run.train(batches[3:])
        assert torch.equal(run.weights, twin.weights)
        assert not torch.equal(run.weights, before)
        assert twin.optimizer.param_groups is twin.optimizer.base.param_groups


def test_parameters_without_a_gradient_do_not_change(member: str, training: Any) -> None:
    def with_unused(net: nn.Module) -> list[dict[str, Any]]:
        used = list(net.parameters())
        net.unused, net.frozen = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2), requires_grad=False)
        return [{"params": [net.unused, net.frozen, used[0]]}, {"params": used[1:]}]

    run = training(member, middle=LAYER_NORM, groups=with_unused)
    before = run.weights
    run.train(run.batches(3))
    assert torch.equal(run.net.unused, torch.ones(2, 2))
    assert torch.equal(run.net.frozen, torch.ones(2))
    assert run.net.unused.grad is None
    assert (run.weights != before).sum() == 100


def test_norm_layers_only_perturbs_norm_layers_and_trains_all_parameters(sharpness_aware: str, training: Any) -> None:
    run = training(
        sharpness_aware,
        middle=LAYER_NORM,
        groups=norm_layers_only,
        **({} if "TRAM" in sharpness_aware else {"rho": 0.3}),
    )
    *earlier, batch = run.batches(5)
    start = run.weights
    run.train(earlier)
    before = run.weights
    run.step(run.closure(batch))
    moved = run.seen[-1] - before
    norms = torch.arange(100).ge(48) & torch.arange(100).lt(64)  # after 40 weights and 8 biases
    assert moved[norms].any()
    assert not moved[~norms].any()
    assert (run.weights != start).all()
    if not sharpness_aware.startswith(("ASAM", "SAGM", "TRAM")):  # their lengths are in other measures
        assert moved.norm().item() == pytest.approx(0.3, rel=1e-9), "the norm is over norm layers only"


class ThreeAlike(nn.Module):
    """Logits that depend on three parameters in the same way."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far, self.fixed = (nn.Parameter(torch.ones(4, 5, dtype=torch.float64)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.near + self.far + self.fixed).T


def test_groups_have_their_own_rho_and_learning_rate(sharpness_aware: str, training: Any) -> None:
    def groups(net: ThreeAlike) -> list[dict[str, Any]]:
        far, fixed = {"params": [net.far], "rho": 0.2}, {"params": [net.fixed], "rho": 0.0, "lr": 0.1}
        return [{"params": [net.near]}, far, fixed]

    run = training(
        sharpness_aware,
        net=ThreeAlike(),
        groups=groups,
        rho=0.1,
        **({"alpha": 0.0} if sharpness_aware == "SAGM" else {}),
    )
    *earlier, batch = run.batches(5)
    run.train(earlier)
    before = run.weights
    slow, equally_slow, fast = (before - 1).split(20)
    torch.testing.assert_close(equally_slow, slow)
    torch.testing.assert_close(fast, 2 * slow)
    run.step(run.closure(batch))
    near, far, fixed = (run.seen[-1] - before).split(20)
    assert near.any()
    torch.testing.assert_close(far, 2 * near)
    assert not fixed.any()


def test_only_the_final_gradient_is_clipped(sharpness_aware: str, training: Any) -> None:
    nearly_none = 1e-12  # of momentum, which MSAM needs
    base = partial(SGD, lr=1.0, momentum=nearly_none)
    run = training(
        sharpness_aware,
        base,
        max_grad_norm=1e-3,
        rho=5.0,
        **({"min_distance": 1.0} if sharpness_aware in MEASURING else {}),
    )
    *earlier, batch = run.batches(5)
    run.train(earlier)
    before = run.weights
    run.step(run.closure(batch))
    assert (run.weights - before).norm().item() == pytest.approx(1e-3, rel=1e-4)  # torch adds 1e-6 to the norm
    assert (run.seen[-1] - before).norm() > 1e-3


@pytest.mark.parametrize("factor", [0.0, 1e-44])
def test_a_gradient_of_zero_gives_no_nan(sharpness_aware: str, factor: float, training: Any) -> None:
    run = training(sharpness_aware, dtype=torch.float32)
    before = run.weights
    for batch in run.batches(3):
        run.step(run.closure(batch, lambda call, logits: logits * factor))
    assert (run.weights - before).abs().max() < 1e-6
    assert run.optimizer.skipped_steps == 0


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


def test_a_member_is_an_optimizer_that_shares_the_groups_of_its_base(member: str, training: Any) -> None:
    given = [{"params": [nn.Parameter(torch.ones(2, 2))]}]
    optimizer = training(member, groups=lambda net: given).optimizer
    assert isinstance(optimizer, Optimizer)
    assert list(given[0]) == ["params"], "the caller's groups are not changed"
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.5})
    assert optimizer.param_groups is optimizer.base.param_groups
    assert [(group["perturb"], group["lr"]) for group in optimizer.base.param_groups] == [(True, 0.05), (True, 0.5)]
    named = training(member, groups=nn.Module.named_parameters)
    named.train(named.batches(1))
    assert named.optimizer.param_groups[0]["param_names"] == [name for name, _ in named.net.named_parameters()]


def test_schedulers_attach_without_a_warning(member: str, training: Any) -> None:
    for schedule in (
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda step: 0.9**step),
        partial(lr_scheduler.CosineAnnealingLR, T_max=10),
        partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=10),
        partial(lr_scheduler.PolynomialLR, total_iters=10, power=0.9),
    ):
        run = training(member)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scheduler = schedule(run.optimizer)
            for batch in run.batches(2):
                run.train([batch])
                scheduler.step()
        assert run.optimizer.base.param_groups[0]["lr"] == scheduler.get_last_lr()[0] != 0.05


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


def test_a_disabled_scaler_is_none(training: Any) -> None:
    assert training("SAM", scaler=torch.amp.GradScaler("cpu", enabled=False)).optimizer.scaler is None


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


@pytest.mark.parametrize("name", ["SAM", "output-bias forgetting"])
def test_a_closure_that_ran_backward_is_rejected_with_a_scaler_or_an_ascent(
    name: str, training: Any, refused: Any
) -> None:
    run = training(name, scaler=torch.amp.GradScaler("cpu") if name == "SAM" else None)
    with refused("closure", got="a closure that ran backward itself"):
        run.step(torch_style(run, run.batches(1)[0]))


def test_a_state_of_a_torch_optimizer_is_rejected(refused: Any) -> None:
    weight = nn.Parameter(torch.ones(2))
    with refused("state_dict", got="keys state, param_groups"):
        SAM([weight], MOMENTUM).load_state_dict(SGD([weight], lr=0.1).state_dict())


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_radius_out_of_range_is_rejected(sharpness_aware: str, value: float, training: Any) -> None:
    with pytest.raises(UsageError) as error:
        training(sharpness_aware, rho=value)
    assert (error.value.key, repr(error.value.got)) == ("rho", repr(value))


WEIGHT = nn.Parameter(torch.ones(2, 2))
MAKE_MESA = partial(MESA, nn.CrossEntropyLoss(), nn.Linear(1, 2))
MAKE_SAF = partial(SAF, nn.CrossEntropyLoss(), samples=1, classes=2)
WITHOUT_PARAMS = (AdaptiveTrigger, OutputBiasForgetting, MAKE_MESA, MAKE_SAF)


@pytest.mark.parametrize(
    ("make", "key", "value", "options"),
    [
        (Plain, "base", "NoneType", {"base": lambda groups: None}),
        (Plain, "base", "int", {"base": 3}),
        (Plain, "base", "an optimizer of other parameters", {"base": lambda groups: SGD([nn.Parameter(WEIGHT + 1)])}),
        (Plain, "params", "one tensor", {"params": WEIGHT}),
        (Plain, "max_grad_norm", 0, None),
        (Plain, "accumulation", "half", None),
        (Plain, "perturbation", "local", None),
        (SAM, "rho", -2.0, {"params": [{"params": [WEIGHT], "rho": -2.0}]}),
        (ASAM, "eta", -0.1, None),
        (GSAM, "alpha", -0.1, None),
        (GSAM, "rho_min", 0.01, None),
        (GSAM, "rho_min", None, {"lr_max": 0.1}),
        (GSAM, "rho_min", 0.1, {"rho_min": 0.1, "lr_max": 1.0}),
        (GSAM, "lr_max", 0.1, {"rho_min": 0.0, "lr_max": 0.1, "lr_min": 0.1}),
        (FriendlySAM, "sigma", -1.0, None),
        (FriendlySAM, "lam", 1.0, None),
        (LookSAM, "k", 0, None),
        (LookSAM, "alpha", -1.0, None),
        (SAGM, "alpha", -1.0, None),
        (MSAM, "base", "SGD with momentum 0", {"base": SGD}),
        (TRAM, "trust", "theta", None),
        (TRAM, "min_distance", -1.0, None),
        (TRAM, "max_distance", 1.0, {"min_distance": 2.0, "max_distance": 1.0}),
        (TRAM, "noise_at", "Identity", {"noise_at": nn.Identity()}),
        (partial(TRAM, trust="noise"), "sigma", 0.0, None),
        (partial(TRAM, trust="noise"), "net", None, None),
        (partial(TRAM, trust="fisher"), "max_distance", 1.0, None),
        (partial(TRAM, trust="fisher"), "min_distance", 1.0, None),
        (partial(TRAM, trust="fisher"), "eta", -1.0, None),
        (partial(TRAM, trust="fisher"), "gamma", 0.0, None),
        (AdaptiveTrigger, "total_steps", 0, {}),
        (AdaptiveTrigger, "decay", 1.0, {"total_steps": 9, "decay": 1.0}),
        (MAKE_MESA, "weight", -1.0, {}),
        (MAKE_MESA, "weight", math.inf, {}),
        (MAKE_MESA, "temperature", 0.0, {}),
        (MAKE_MESA, "decay", 1.0, {}),
        (MAKE_MESA, "decay", -0.1, {}),
        (MAKE_MESA, "start_step", -1, {}),
        (MAKE_SAF, "samples", 0, {}),
        (MAKE_SAF, "classes", 1, {}),
        (MAKE_SAF, "lag", 0, {}),
        (MAKE_SAF, "weight", -1.0, {}),
        (MAKE_SAF, "temperature", math.inf, {}),
        (MAKE_SAF, "start_epoch", -1, {}),
        (OutputBiasForgetting, "gamma", -0.1, {}),
        (OutputBiasForgetting, "uniform_probability", 1.0, {}),
        (OutputBiasForgetting, "uniform_probability", 0.5, {"always": True, "uniform_probability": 0.5}),
        (OutputBiasForgetting, "form", "linear", {}),
    ],
)
def test_arguments_out_of_range_are_rejected(
    make: Callable[..., Any], key: str, value: Any, options: dict[str, Any] | None, refused: Any
) -> None:
    needed = {} if make in WITHOUT_PARAMS else {"params": [WEIGHT], "base": MOMENTUM}
    with refused(key, got=value):
        make(**(needed | (options or {key: value})))
