"""Budgets, layout and compilation as configuration; bases whose update is one kernel."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from uumamba.config import read_config
from uumamba.config.optim import AdamWConfig, SAMConfig, SGDConfig, fuses
from uumamba.config.training import ScheduleConfig, resolve_channels_last
from uumamba.runtime.errors import UsageError


def test_a_budget_is_read_with_its_minutes() -> None:
    config = read_config("demo", ("schedule={name: budget, minutes: 25, warmup_epochs: 1}",))
    budget = config.schedule.build_budget()
    assert budget is not None
    assert budget.total_s == 1500.0
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = config.schedule.build(optimizer, epochs=15, batches_per_epoch=40, budget=budget)
    assert schedule.get_last_lr() == [1 / 40], "the first of 40 warm-up steps"


@pytest.mark.parametrize("given", [{"name": "budget"}, {"name": "poly", "minutes": 25.0}, {"minutes": 25.0}])
def test_minutes_and_a_budget_come_together(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"a budget needs minutes, and no other schedule has them"):
        ScheduleConfig.model_validate(given)


def test_other_schedules_have_no_budget() -> None:
    assert read_config("demo").schedule.build_budget() is None


def test_channels_last_is_refused_where_it_may_crash() -> None:
    with pytest.raises(UsageError, match=r"training.channels_last is slower on a CPU, .* leave it at auto"):
        resolve_channels_last(True, "cpu")
    assert not resolve_channels_last("auto", "cuda")
    assert not resolve_channels_last(False, "cuda:1")


def test_the_base_of_a_run_is_fused_and_takes_the_step_of_one_that_is_not() -> None:
    for config in (SGDConfig(name="SGD", lr=0.1), AdamWConfig(name="AdamW", lr=0.1)):
        weights = [torch.linspace(-1, 1, 1001).requires_grad_() for _ in range(2)]
        for weight, fused in zip(weights, (True, False), strict=True):
            base = config.build(fused=fused)([weight])
            assert bool(base.defaults["fused"]) == fused
            for _ in range(5):
                weight.grad = weight.detach() ** 2 - 0.5
                base.step()
        assert torch.allclose(*weights, rtol=1e-5, atol=1e-6)


def test_rho_zero_is_the_fused_base_bit_for_bit() -> None:
    def trained(rho: float | None) -> torch.Tensor:
        torch.manual_seed(0)
        net, target = nn.Linear(40, 30), torch.randn(8, 30)
        objective, image = nn.Identity(), torch.randn(8, 40)

        def loss() -> torch.Tensor:
            return nn.functional.mse_loss(net(image), target)

        base = AdamWConfig(name="AdamW", lr=0.1)
        if rho is None:
            optimizer = base.build(fused=True)(net.parameters())
            for _ in range(5):
                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
        else:
            sam = SAMConfig(name="SAM", rho=rho, base=base, max_grad_norm=None).build(net, objective)
            assert sam.base.defaults["fused"]
            for _ in range(5):
                sam.step(loss)
        return net.weight.detach()

    assert torch.equal(trained(0.0), trained(None))
    assert not torch.equal(trained(0.1), trained(None))


@pytest.mark.parametrize("config", [SGDConfig(name="SGD"), AdamWConfig(name="AdamW")], ids=["SGD", "AdamW"])
def test_a_fused_base_goes_on_from_its_stored_state_bit_for_bit(config: SGDConfig | AdamWConfig) -> None:
    def step(weight: torch.Tensor, base: torch.optim.Optimizer) -> None:
        weight.grad = weight.detach().sin()
        base.step()

    make = config.build(fused=True)
    whole = torch.randn(517).requires_grad_()
    base = make([whole])
    step(whole, base)
    parted = whole.detach().clone().requires_grad_()
    resumed = make([parted])
    resumed.load_state_dict(deepcopy(base.state_dict()))
    for _ in range(3):
        step(whole, base)
        step(parted, resumed)
    assert torch.equal(whole, parted)


def test_weights_on_no_real_device_are_not_fused() -> None:
    with torch.device("meta"):
        assert not fuses(nn.Linear(2, 2))
    assert fuses(nn.Linear(2, 2))
