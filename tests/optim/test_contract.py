"""Promises of every member of the family, around every base."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from tests.optim.shared_parts import LAYER_NORM, MEASURING, OBJECTIVES, ONE_PASS
from tests.optim_members import OPTIMIZERS
from uumamba import optim
from uumamba.optim import norm_layers_only


def dropout() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(8), nn.Dropout(0.3))


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


def test_a_member_is_an_optimizer_that_shares_the_groups_of_its_base(member: str, training: Any) -> None:
    given: list[dict[str, Any]] = [{}]

    def make_groups(net: nn.Module) -> list[dict[str, Any]]:
        given[0]["params"] = list(net.parameters())
        return given

    optimizer = training(member, groups=make_groups).optimizer
    assert isinstance(optimizer, Optimizer)
    assert list(given[0]) == ["params"], "the caller's groups are not changed"
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "lr": 0.5})
    assert optimizer.param_groups is optimizer.base.param_groups
    assert [(group["perturb"], group["lr"]) for group in optimizer.base.param_groups] == [(True, 0.05), (True, 0.5)]
    named = training(member, groups=nn.Module.named_parameters)
    named.train(named.batches(1))
    assert named.optimizer.param_groups[0]["param_names"] == [name for name, _ in named.net.named_parameters()]
