"""Checkpoints by the clock, between two steps: as good to resume from as any, and from a clock that nobody sets."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from uumamba.training import Trainer, read_checkpoint

Build = Callable[..., Trainer]
Bits = Callable[[Path], dict[str, Any]]


class PulledPlugError(Exception):
    """The process dies here."""


def until_step(number: int, trainer: Trainer) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    """The trainer's augmentation, which dies when so many steps are done."""
    augment = trainer.augment

    def dies(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if trainer.state.progress.steps_done == number:
            raise PulledPlugError
        assert augment is not None
        return augment(batch)

    return dies


@pytest.mark.parametrize("steps", [1, 7, 10])
def test_a_run_that_dies_in_an_epoch_goes_on_from_its_last_step(
    build_trainer: Build, bits: Bits, unstopped: Path, tmp_path: Path, steps: int
) -> None:
    trainer = build_trainer(tmp_path, save_every_minutes=0)
    trainer.augment = until_step(steps, trainer)
    with pytest.raises(PulledPlugError):
        trainer.fit()
    assert read_checkpoint(tmp_path / "last.safetensors").progress["steps_done"] == steps
    resumed = build_trainer(tmp_path)
    resumed.fit(resume=True)
    for name in ("last", "best"):
        assert bits(tmp_path / f"{name}.safetensors") == bits(unstopped / f"{name}.safetensors")


def test_a_checkpoint_is_kept_only_when_the_time_has_come(build_trainer: Build, tmp_path: Path) -> None:
    found: dict[float | None, int] = {}
    for minutes in (0.0, 1000.0, None):
        folder = tmp_path / str(minutes)
        trainer = build_trainer(folder, save_every_minutes=minutes)
        trainer.augment = until_step(8, trainer)
        with pytest.raises(PulledPlugError):
            trainer.fit()
        found[minutes] = read_checkpoint(folder / "last.safetensors").progress["steps_done"]
    assert found == {0.0: 8, 1000.0: 5, None: 5}, "five steps are an epoch"


def test_a_wall_clock_that_jumps_and_files_of_any_age_change_nothing(
    build_trainer: Build, bits: Bits, unstopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock goes back and forth by decades between steps, and the older checkpoint seems to be the newer one."""
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(jumps) * 1e9 + 2e9)
    trainer = build_trainer(tmp_path, save_every_minutes=1000)
    trainer.augment = until_step(12, trainer)
    with pytest.raises(PulledPlugError):
        trainer.fit()
    for name, year_s in (("last", 0), ("previous", 4e9), ("best", 2e9), ("metrics", 1e9)):
        for path in tmp_path.glob(f"{name}.*"):
            os.utime(path, (year_s, year_s))
    said: list[str] = []
    build_trainer(tmp_path, log=said.append).fit(resume=True)
    assert said[0] == "going on after epoch 2/4", "from last, however old it looks"
    assert bits(tmp_path / "last.safetensors") == bits(unstopped / "last.safetensors")


def test_a_time_that_is_negative_or_no_number_is_refused(build_trainer: Build) -> None:
    for minutes in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"save_every_minutes must not be negative, got {minutes}; None saves"):
            build_trainer(None, save_every_minutes=minutes)
