"""Time budget: learning rate, several calls, last validation and checkpoint."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.tiny_run import PulledPlugError, rows_of
from uumamba.optim import Plain
from uumamba.training import Budget, Trainer, by_budget, read_checkpoint

STEP_S, VALIDATION_S = 1.0, 4.0
LR = 0.5


class FakeClock:
    """Clock that tests advance; it also records the learning rates."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.rates: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def validate(self, net: nn.Module) -> dict[str, float]:
        self.now_s += VALIDATION_S
        return {"dice": 0.5}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def build(
    clock: FakeClock,
    *,
    minutes: float,
    run_dir: Path | None = None,
    steps_an_epoch: int = 10,
    epochs: int = 1000,
    **options: Any,
) -> Trainer:
    """Build a trainer with steps of 1 s, validations of 4 s."""
    net = nn.Linear(1, 1)
    optimizer = Plain(net.parameters(), partial(torch.optim.SGD, lr=LR))
    budget = Budget(minutes, clock=clock)

    def batches(epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        for _ in range(steps_an_epoch):
            clock.now_s += STEP_S
            clock.rates.append(optimizer.param_groups[0]["lr"])
            yield {"image": torch.ones(1, 1)}

    defaults: dict[str, Any] = {"validate": clock.validate, "validate_every": 5, "log": [].append}
    return Trainer(
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


def test_training_ends_in_time_with_a_validation_and_a_checkpoint(clock: FakeClock, tmp_path: Path) -> None:
    build(clock, minutes=2.0, run_dir=tmp_path).fit()
    used_s = clock.now_s - 1000
    # 1.25 times the 4 s of a validation are reserved; 115 s are left for steps and earlier validations.
    assert used_s == 115 + VALIDATION_S
    rows = rows_of(tmp_path)
    assert [row["epoch"] for row in rows if "dice" in row] == [0, 4, 9, len(rows) - 1]
    assert len(clock.rates) == used_s - 4 * VALIDATION_S
    kept = read_checkpoint(tmp_path / "last.safetensors").progress
    assert kept["used_seconds"] == used_s
    assert kept["epochs_done"] == len(rows) == 11, "the last epoch has only three steps"
    assert kept["steps_done"] == 103
    before = (tmp_path / "last.safetensors").read_bytes()
    build(clock, minutes=2.0, run_dir=tmp_path).fit(resume=True)
    assert (tmp_path / "last.safetensors").read_bytes() == before, "a run without time left is unchanged"


@pytest.mark.parametrize(("minutes", "steps"), [(2.0, 120), (0.2, 12)])
def test_the_rate_follows_the_used_share_of_the_time(clock: FakeClock, minutes: float, steps: int) -> None:
    build(clock, minutes=minutes, validate=None).fit()
    assert len(clock.rates) == steps
    # In the first epoch 5 % of the time are reserved, then nothing: validating and saving take no time here.
    for done, rate in enumerate(clock.rates):
        assert rate == pytest.approx(LR * (1 - done / (0.95 * steps if done <= 10 else steps)), rel=1e-6)


def test_the_used_time_of_killed_calls_adds_up(clock: FakeClock, tmp_path: Path) -> None:
    starts = []
    for steps in (37, 30, 10**6):
        trainer, began, until_s = build(clock, minutes=2.0, run_dir=tmp_path), len(clock.rates), clock.now_s + steps

        def update(
            trainer: Trainer = trainer, update: Callable[[], None] = trainer.clock.update, until_s: float = until_s
        ) -> None:
            update()
            if clock.now_s >= until_s:
                trainer._save()  # a checkpoint that is due just before the kill
                raise PulledPlugError

        trainer.clock.update = update  # type: ignore[method-assign]
        try:
            trainer.fit(resume=True)
        except PulledPlugError:
            clock.now_s += 5000  # without training
        starts.append(1 - clock.rates[began] / LR)
    assert starts[1] == pytest.approx(37 / 115, abs=0.01)
    assert starts[2] == pytest.approx(67 / 115, abs=0.01)
    assert read_checkpoint(tmp_path / "last.safetensors").progress["used_seconds"] == 115 + VALIDATION_S
    assert clock.rates == sorted(clock.rates, reverse=True)


def test_a_run_killed_in_its_last_validation_is_completed_by_one_step_and_a_validation(
    clock: FakeClock, tmp_path: Path
) -> None:
    trainer = build(clock, minutes=1.0, run_dir=tmp_path)
    trainer.fit()
    progress = trainer.state.progress
    progress.epochs_done, progress.steps_in_epoch = progress.epochs_done - 1, 3
    trainer._save()
    build(clock, minutes=1.0, run_dir=tmp_path).fit(resume=True)
    row = rows_of(tmp_path)[-1]
    assert row["epoch"] == progress.epochs_done
    assert "dice" in row


def test_the_rate_reaches_zero_at_the_last_epoch_if_that_comes_first(clock: FakeClock) -> None:
    build(clock, minutes=100.0, epochs=2, validate=None).fit()
    assert clock.rates == pytest.approx([LR * (1 - step / 20) for step in range(20)])


def test_a_due_validation_is_skipped_if_no_time_would_be_left_for_the_last(clock: FakeClock) -> None:
    validated: list[float] = []

    def validate(net: nn.Module) -> dict[str, float]:
        validated.append(clock.now_s - 1000)
        clock.now_s += 10.0
        return {"dice": 0.5}

    # Of 60 s, the first epoch takes 10 + 10 and 12.5 are reserved, so 47.5 are for steps. A validation at 30 s ends in
    # time, at 40 s; at 50 s there is no time for two.
    build(clock, minutes=1.0, validate=validate, validate_every=1).fit()
    assert validated == [10.0, 30.0, 48.0]


@pytest.mark.parametrize(
    ("step_s", "factors"),
    # With steps of 5 s only 2 of the 4 warm-up steps are taken in a tenth of the 100 s.
    [(1.0, [0.25, 0.99 * 0.5, 0.98 * 0.75, 0.97, 0.96]), (5.0, [0.25, 0.95 * 0.5, 0.9, 0.85, 0.8])],
)
def test_a_warm_up_ends_with_its_steps_or_a_tenth_of_the_time(
    clock: FakeClock, step_s: float, factors: list[float]
) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    budget = Budget(100 / 60, clock=clock)
    budget.begin(longest_s={"validation": 0.0})
    schedule = by_budget(optimizer, budget, total_steps=10**9, power=1.0, warmup_steps=4)
    found = []
    for _ in range(5):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        clock.now_s += step_s
        schedule.step()
    assert found == pytest.approx(factors, abs=1e-6)


def test_an_unlimited_budget_has_no_share_and_no_end(clock: FakeClock) -> None:
    budget = Budget(clock=clock)
    budget.begin()
    clock.now_s += 1e9
    assert (budget.share, budget.is_over, budget.left_s) == (0.0, False, math.inf)
    assert [budget.needs_validation(due=due) for due in (True, False)] == [True, False]


@pytest.mark.parametrize("minutes", [0.0, -1.0])
def test_a_budget_without_time_is_refused(minutes: float, refused: Any) -> None:
    with refused("minutes", got=minutes):
        Budget(minutes)


def test_the_time_left_is_that_of_the_budget(clock: FakeClock) -> None:
    lines: list[str] = []
    build(clock, minutes=1.0, log=lines.append).fit()
    assert lines[0].startswith("epoch 1/1000")
    assert "h" not in lines[0].split("left ")[1], "a thousand epochs would take hours"
    assert "left" not in lines[-1]
