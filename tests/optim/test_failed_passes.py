"""Passes that raise or are not finite change neither weights nor state."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.optim.shared_parts import ADAMW
from uumamba.optim import MSAM, SAM, Plain


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


@pytest.mark.parametrize("make", [Plain, SAM, MSAM])
def test_a_skipped_step_leaves_no_running_statistic_that_is_not_finite(make: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2))
    optimizer = make(net.parameters(), partial(torch.optim.SGD, lr=0.1, momentum=0.9), net=net)
    good, bad = torch.randn(8, 3), torch.randn(8, 3)
    bad[0, 1] = float("inf")
    optimizer.step(lambda: net(good).square().mean())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer.step(lambda: net(bad).square().mean())
    assert optimizer.skipped_steps == 1
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)
    optimizer.step(lambda: net(good).square().mean() * torch.tensor(float("inf")))  # of finite statistics
    assert optimizer.skipped_steps == 2
    assert net[0].num_batches_tracked == before["0.num_batches_tracked"] + 1
