"""A budget of time: the rate follows it, calls add up, and the last validation and checkpoint fit into it."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from uumamba.optim import Plain
from uumamba.runtime.errors import UumambaError
from uumamba.training import RunLog, Trainer, read_checkpoint
from uumamba.training.budget import Budget
from uumamba.training.schedule import by_budget, make_schedule

STEP_S, VALIDATION_S = 1.0, 4.0
LR = 0.5


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def takes(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def run(
    clock: Clock, *, minutes: float, run_dir: Path | None = None, steps_an_epoch: int = 10, **options: Any
) -> tuple[Trainer, list[float]]:
    """A trainer whose steps take a second and whose validations take four, and the rates of its steps."""
    net = nn.Linear(1, 1)
    optimizer = Plain(net.parameters(), partial(torch.optim.SGD, lr=LR))
    budget = Budget(minutes, clock=clock)
    epochs = options.pop("epochs", 1000)
    rates: list[float] = []

    def batches(epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(steps_an_epoch):
            clock.takes(STEP_S)
            rates.append(optimizer.param_groups[0]["lr"])
            yield {"image": torch.ones(1, 1)}

    def validate(net: nn.Module) -> dict[str, float]:
        clock.takes(VALIDATION_S)
        return {"dice": 0.5}

    defaults: dict[str, Any] = {"validate": validate, "validate_every": 5, "progress": False, "log": [].append}
    trainer = Trainer(
        net,
        lambda net, batch: net(batch["image"]).square().sum(),
        optimizer,
        epochs=epochs,
        batches=batches,
        scheduler=by_budget(optimizer, budget, total_steps=epochs * steps_an_epoch, power=1.0),
        budget=budget,
        run_dir=run_dir,
        **defaults | options,
    )
    return trainer, rates


def test_training_ends_in_time_with_a_validation_and_a_whole_checkpoint(clock: Clock, tmp_path: Path) -> None:
    trainer, rates = run(clock, minutes=2.0, run_dir=tmp_path)
    trainer.fit()
    used_s = clock.now_s - 1000
    # 4 s of validation, kept 1.25 times, leave 115 s for steps and the validations before the last.
    assert used_s == 115 + VALIDATION_S
    rows = RunLog(tmp_path / "metrics.jsonl").rows()
    assert [row["epoch"] for row in rows if "dice" in row] == [0, 4, 9, len(rows) - 1]
    assert len(rates) == used_s - 4 * VALIDATION_S
    kept = read_checkpoint(tmp_path / "last.safetensors").progress
    assert kept["used_seconds"] == used_s
    assert kept["epochs_done"] == len(rows) == 11, "the last epoch is a short one of three steps"
    assert kept["steps_done"] == 103


def test_the_rate_follows_the_share_of_the_time_that_is_used(clock: Clock) -> None:
    trainer, rates = run(clock, minutes=2.0, validate=None)
    trainer.fit()
    # Until the first epoch's end 5 % of 120 s are kept, then nothing: neither validating nor saving takes time here.
    for done, rate in enumerate(rates):
        assert rate == pytest.approx(LR * (1 - done / (114 if done <= 10 else 120)), rel=1e-6)
    assert len(rates) == 120


def test_a_slower_device_makes_fewer_steps_at_rates_that_fall_as_far(clock: Clock) -> None:
    trainer, rates = run(clock, minutes=0.2, validate=None)
    trainer.fit()
    assert len(rates) == 12
    assert rates[0] == LR
    assert rates[-1] == pytest.approx(LR / 12)


def test_calls_that_are_stopped_add_up(clock: Clock, tmp_path: Path) -> None:
    stop_after = iter([37, 30, 10**6])
    rates: list[float] = []
    starts: list[float] = []

    class KilledError(UumambaError):
        pass

    for _ in range(3):
        trainer, of_call = run(clock, minutes=2.0, run_dir=tmp_path)
        steps, began_s = next(stop_after), clock.now_s
        count_step = trainer._count_step

        def count(
            loss: torch.Tensor,
            trainer: Trainer = trainer,
            count_step: Callable[[torch.Tensor], None] = count_step,
            until_s: float = began_s + steps,
        ) -> None:
            count_step(loss)
            if clock.now_s >= until_s:
                assert trainer.folder is not None
                trainer.folder.save(trainer.state.checkpoint(None))
                raise KilledError("the lent device is taken back")

        trainer._count_step = count  # type: ignore[method-assign]
        try:
            trainer.fit(resume=True)
        except KilledError:
            clock.takes(5000)  # nobody trains
        starts.append(of_call[0])
        rates += of_call
    used = [1 - start / LR for start in starts]
    assert used[1] == pytest.approx(37 / 115, abs=0.01)
    assert used[2] == pytest.approx(67 / 115, abs=0.01)
    assert read_checkpoint(tmp_path / "last.safetensors").progress["used_seconds"] == 115 + VALIDATION_S
    # All of the time but the validations is steps, of which the generator's look ahead at a stop counts none twice.
    assert rates == sorted(rates, reverse=True)


def test_a_run_whose_time_is_over_is_left_as_it_is(clock: Clock, tmp_path: Path) -> None:
    run(clock, minutes=1.0, run_dir=tmp_path)[0].fit()
    before = (tmp_path / "last.safetensors").read_bytes()
    again, rates = run(clock, minutes=1.0, run_dir=tmp_path)
    again.fit(resume=True)
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert rates == []


def test_one_that_was_killed_in_its_last_validation_is_ended_by_a_step_and_that(clock: Clock, tmp_path: Path) -> None:
    trainer, _ = run(clock, minutes=1.0, run_dir=tmp_path)
    trainer.fit()
    progress = trainer.state.progress
    progress.epochs_done, progress.steps_in_epoch = progress.epochs_done - 1, 3
    assert trainer.folder is not None
    trainer.folder.save(trainer.state.checkpoint(None))
    again, _ = run(clock, minutes=1.0, run_dir=tmp_path)
    again.fit(resume=True)
    rows = RunLog(tmp_path / "metrics.jsonl").rows()
    assert rows[-1]["epoch"] == progress.epochs_done
    assert "dice" in rows[-1]


def test_epochs_are_an_end_too_and_the_rate_knows_it(clock: Clock) -> None:
    trainer, rates = run(clock, minutes=100.0, epochs=2, validate=None)
    trainer.fit()
    assert rates == pytest.approx([LR * (1 - step / 20) for step in range(20)])


def test_a_validation_that_is_due_is_left_out_where_the_last_would_not_fit_behind_it(clock: Clock) -> None:
    validated: list[float] = []

    def validate(net: nn.Module) -> dict[str, float]:
        validated.append(clock.now_s - 1000)
        clock.takes(10.0)
        return {"dice": 0.5}

    # 60 s, of which the first epoch takes 10 + 10 and 12.5 are kept: 47.5 are for steps. At 30 s another one ends at
    # 40, in time; at 50 there is no time for two.
    trainer, _ = run(clock, minutes=1.0, validate=validate, validate_every=1)
    trainer.fit()
    assert validated == [10.0, 30.0, 48.0]


def test_a_validation_longer_than_the_budget_s_rest_ends_the_run_there(clock: Clock) -> None:
    def validate(net: nn.Module) -> dict[str, float]:
        clock.takes(25.0)
        return {"dice": 0.5}

    trainer, rates = run(clock, minutes=1.0, validate=validate, steps_an_epoch=20)
    trainer.fit()
    assert len(rates) == 20
    assert clock.now_s - 1000 == 45


def test_a_warm_up_ends_with_its_steps_or_a_tenth_of_the_time(clock: Clock) -> None:
    parameter = nn.Parameter(torch.zeros(1))
    factors = []
    for seconds in (1.0, 5.0):
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        budget = Budget(100 / 60, clock=clock)
        budget.begin(longest_s={"validation": 0.0})
        schedule = by_budget(optimizer, budget, total_steps=10**9, power=1.0, warmup_steps=4)
        factors.append([])
        for _ in range(5):
            factors[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            clock.takes(seconds)
            schedule.step()
    quick = [0.25, 0.99 * 0.5, 0.98 * 0.75, 0.97, 0.96]
    slow = [0.25, 0.95 * 0.5, 0.9, 0.85, 0.8]  # at 10 of 100 seconds there are 2 of 4 steps
    assert factors[0] == pytest.approx(quick, abs=1e-6)
    assert factors[1] == pytest.approx(slow, abs=1e-6)


def test_without_a_limit_there_is_no_share_and_no_end(clock: Clock) -> None:
    budget = Budget(clock=clock)
    budget.begin()
    clock.takes(1e9)
    assert (budget.share, budget.is_over, budget.left_s) == (0.0, False, math.inf)
    assert [budget.validates_now(due=due) for due in (True, False)] == [True, False]


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan])
def test_a_budget_without_time_is_refused(minutes: float) -> None:
    with pytest.raises(ValueError, match="more than 0 minutes"):
        Budget(minutes)


def test_a_budget_schedule_needs_its_budget() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="or budget with a budget"):
        make_schedule(optimizer, name="budget", total_steps=5)


def test_time_left_is_told_from_the_budget(clock: Clock) -> None:
    lines: list[str] = []
    run(clock, minutes=1.0, log=lines.append)[0].fit()
    assert lines[0].startswith("epoch 1/1000")
    assert "left " in lines[0]
    assert "h" not in lines[0].split("left ")[1], "a thousand epochs would take hours"
    assert "left" not in lines[-1]
