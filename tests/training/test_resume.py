"""Stop and resume equals never stopping, bit for bit; what cannot be resumed is refused with the reason."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from uumamba.optim import Plain
from uumamba.runtime.errors import EXIT_STOPPED_RESUMABLE, UsageError
from uumamba.training import (
    DamagedCheckpointError,
    RunLog,
    StoppedOnRequest,
    Trainer,
    read_checkpoint,
    save_checkpoint,
)

Build = Callable[..., Trainer]
Bits = Callable[[Path], dict[str, Any]]


class PulledPlugError(Exception):
    """The process dies here."""


def at_call(number: int, act: Callable[[], None], function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``, and ``act`` just before its call of that number."""
    calls = iter(range(1, 10**6))

    def counted(*arguments: Any) -> Any:
        if next(calls) == number:
            act()
        return function(*arguments)

    return counted


def pull_plug() -> None:
    raise PulledPlugError


def rows_without_seconds(folder: Path) -> list[dict[str, Any]]:
    return [row | {"seconds": None, "data_wait": None} for row in RunLog(folder / "metrics.jsonl").rows()]


@pytest.mark.parametrize(
    ("part", "call"), [("augment", 1), ("augment", 8), ("augment", 20), ("validate", 1), ("validate", 4)]
)
def test_a_crash_anywhere_then_resume_equals_never_stopping(
    build_trainer: Build, bits: Bits, unstopped: Path, tmp_path: Path, part: str, call: int
) -> None:
    trainer = build_trainer(tmp_path)
    setattr(trainer, part, at_call(call, pull_plug, getattr(trainer, part)))
    with pytest.raises(PulledPlugError):
        trainer.fit()
    build_trainer(tmp_path).fit(resume=True)
    for name in ("last", "previous", "best"):
        assert bits(tmp_path / f"{name}.safetensors") == bits(unstopped / f"{name}.safetensors")
    assert rows_without_seconds(tmp_path) == rows_without_seconds(unstopped)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("calls", [(1,), (8,), (10,), (3, 2)], ids=str)
def test_a_signal_stops_after_the_step_and_resume_equals_never_stopping(
    build_trainer: Build, bits: Bits, unstopped: Path, tmp_path: Path, calls: tuple[int, ...], number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    for call in calls:
        trainer = build_trainer(tmp_path)
        trainer.augment = at_call(call, lambda: os.kill(os.getpid(), number), trainer.augment)
        with pytest.raises(
            StoppedOnRequest, match=rf"Stopped by {number.name} in epoch \d after [1-5] steps"
        ) as stopped:
            trainer.fit(resume=True)
        assert stopped.value.exit_code == EXIT_STOPPED_RESUMABLE
        assert signal.getsignal(number) == before
    assert read_checkpoint(tmp_path / "last.safetensors").progress["steps_done"] == sum(calls)
    build_trainer(tmp_path).fit(resume=True)
    for name in ("last", "best"):
        assert bits(tmp_path / f"{name}.safetensors") == bits(unstopped / f"{name}.safetensors")
    assert rows_without_seconds(tmp_path) == rows_without_seconds(unstopped)


def test_a_signal_while_validating_stops_after_the_epoch(build_trainer: Build, tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path)
    trainer.validate = at_call(2, lambda: signal.raise_signal(signal.SIGTERM), trainer.validate)
    with pytest.raises(StoppedOnRequest, match="in epoch 3 after 0 steps"):
        trainer.fit()
    assert read_checkpoint(tmp_path / "last.safetensors").progress["epochs_done"] == 2


def test_an_error_after_a_request_to_stop_is_reported_as_the_stop(build_trainer: Build, tmp_path: Path) -> None:
    def lose_worker() -> None:
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker was killed")

    trainer = build_trainer(tmp_path)
    trainer.augment = at_call(7, lose_worker, trainer.augment)
    with pytest.raises(StoppedOnRequest, match=r"Stopped by SIGTERM \(DataLoader worker was killed\)"):
        trainer.fit()


def test_a_run_that_is_done_is_left_as_it_is(build_trainer: Build, bits: Bits, tmp_path: Path) -> None:
    build_trainer(tmp_path).fit()
    before = bits(tmp_path / "last.safetensors")
    build_trainer(tmp_path, batches=None).fit(resume=True)
    assert bits(tmp_path / "last.safetensors") == before


def test_resuming_an_empty_folder_starts_there(build_trainer: Build, tmp_path: Path) -> None:
    build_trainer(tmp_path / "new", epochs=1).fit(resume=True)
    assert (tmp_path / "new" / "last.safetensors").is_file()


def test_starting_over_a_checkpoint_is_refused(build_trainer: Build, tmp_path: Path) -> None:
    build_trainer(tmp_path, epochs=1).fit()
    with pytest.raises(UsageError, match=r"holds a checkpoint already; go on from it with --resume"):
        build_trainer(tmp_path, epochs=1).fit()


def test_resuming_without_a_folder_is_refused(build_trainer: Build) -> None:
    with pytest.raises(UsageError, match="no run_dir was given"):
        build_trainer(None).fit(resume=True)


def test_another_configuration_is_refused_with_the_difference(build_trainer: Build, tmp_path: Path) -> None:
    build_trainer(tmp_path, epochs=1).fit()
    other = {"seed": 0, "optim": {"rho": 0.1, "sizes": [1, 2]}, "net": {}}
    with pytest.raises(
        UsageError, match=r"(?s)net: absent there, \{\} here.*optim.rho: 0.05 there, 0.1 here"
    ) as refused:
        build_trainer(tmp_path, config=other).fit(resume=True)
    assert "sizes" not in str(refused.value), "a list is what JSON makes of a tuple"
    build_trainer(tmp_path, epochs=2, config=other).fit(resume=True, force=True)
    assert read_checkpoint(tmp_path / "last.safetensors").config == other
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == other


def test_a_stored_configuration_is_completed_before_it_is_compared(build_trainer: Build, tmp_path: Path) -> None:
    build_trainer(tmp_path, epochs=1, config={"optim": {"rho": 0.05}}).fit()

    def complete(stored: Any) -> Any:
        return {"optim": {"norm": 2} | stored["optim"]}

    options: dict[str, Any] = {"epochs": 1, "complete_config": complete}
    other = {"optim": {"rho": 0.05, "norm": 1}}
    with pytest.raises(UsageError, match=r"another configuration:\n  optim.norm: 2 there, 1 here\nResume"):
        build_trainer(tmp_path, config=other, **options).fit(resume=True)
    newer = {"optim": {"rho": 0.05, "norm": 2}}
    build_trainer(tmp_path, config=newer, **options).fit(resume=True)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == newer


def test_another_network_is_refused_by_name(build_trainer: Build, tmp_path: Path) -> None:
    build_trainer(tmp_path, epochs=1).fit()
    trainer = build_trainer(tmp_path)
    trainer.net[4] = trainer.state.net[4] = nn.Conv2d(4, 7, 1)
    with pytest.raises(UsageError, match=r"does not fit this run's network .*size mismatch"):
        trainer.fit(resume=True)


def test_a_network_that_differs_everywhere_is_refused_in_one_line(build_trainer: Build, tmp_path: Path) -> None:
    build_trainer(tmp_path, epochs=1).fit()
    trainer = build_trainer(tmp_path)
    trainer.state.net = nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(50)))
    with pytest.raises(UsageError, match=r"network \(Error.* \.\.\.\); build the one that it was made with") as refused:
        trainer.fit(resume=True)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("damage", ["truncated", "one bit flipped", "emptied"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_and_says_so(
    build_trainer: Build, bits: Bits, unstopped: Path, tmp_path: Path, damage: str
) -> None:
    trainer = build_trainer(tmp_path)
    trainer.augment = at_call(17, pull_plug, trainer.augment)
    with pytest.raises(PulledPlugError):
        trainer.fit()
    spoil(tmp_path / "last.safetensors", damage)
    said: list[str] = []
    resumed = build_trainer(tmp_path, log=said.append)
    resumed.augment = at_call(6, pull_plug, resumed.augment)
    with pytest.raises(PulledPlugError):
        resumed.fit(resume=True)
    assert "last.safetensors is damaged" in said[0]
    assert "Going on from previous.safetensors" in said[0]
    assert said[1] == "going on after epoch 2/4"
    assert read_checkpoint(tmp_path / "previous.safetensors").progress["epochs_done"] == 2, "it was not overwritten"
    build_trainer(tmp_path).fit(resume=True)
    assert bits(tmp_path / "last.safetensors") == bits(unstopped / "last.safetensors")
    assert rows_without_seconds(tmp_path) == rows_without_seconds(unstopped)


def test_two_damaged_checkpoints_are_an_error(build_trainer: Build, tmp_path: Path) -> None:
    build_trainer(tmp_path, epochs=2).fit()
    for name in ("last", "previous"):
        spoil(tmp_path / f"{name}.safetensors", "truncated")
    with pytest.raises(DamagedCheckpointError, match=r"previous.safetensors is damaged"):
        build_trainer(tmp_path).fit(resume=True)


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "one bit flipped":
        content[-5] ^= 1
    path.write_bytes(content if damage == "one bit flipped" else content[: len(content) // 2] * (damage == "truncated"))


def test_a_log_longer_than_the_checkpoint_knows_is_cut_back(
    build_trainer: Build, unstopped: Path, tmp_path: Path
) -> None:
    trainer = build_trainer(tmp_path)
    trainer.augment = at_call(12, pull_plug, trainer.augment)
    with pytest.raises(PulledPlugError):
        trainer.fit()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 2, "loss": 99.0}\n{"epoch": 3, "lo')
    build_trainer(tmp_path).fit(resume=True)
    assert rows_without_seconds(tmp_path) == rows_without_seconds(unstopped)


def test_momentum_comes_back_in_the_layout_of_its_weight(build_trainer: Build, tmp_path: Path) -> None:
    trainers = [build_trainer(tmp_path, epochs=1), build_trainer(tmp_path, epochs=2)]
    for trainer in trainers:
        weight = trainer.net[0].weight = nn.Parameter(torch.randn(4, 2, 3, 3).to(memory_format=torch.channels_last))
        trainer.optimizer = trainer.state.optimizer = Plain(
            trainer.net.parameters(), lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)
        )
        trainer.optimizer.step(lambda weight=weight: weight.square().sum())
    save_checkpoint(tmp_path / "last.safetensors", trainers[0].state.checkpoint(None))
    trainers[1].state.restore(read_checkpoint(tmp_path / "last.safetensors"))
    momentum = trainers[1].optimizer.base.state[trainers[1].net[0].weight]["momentum_buffer"]
    assert momentum.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(momentum, trainers[0].optimizer.base.state[trainers[0].net[0].weight]["momentum_buffer"])


def test_an_average_that_is_forced_late_starts_at_the_weights(build_trainer: Build, tmp_path: Path) -> None:
    build_trainer(tmp_path, epochs=1, ema_decay=None).fit()
    trainer = build_trainer(tmp_path, epochs=1)
    trainer.fit(resume=True)
    assert trainer.average is not None
    for mean, weight in zip(trainer.average.module.parameters(), trainer.net.parameters(), strict=True):
        assert torch.equal(mean, weight)


def test_training_draws_no_random_number_itself(tmp_path: Path) -> None:
    net = nn.Linear(1, 1)

    def batches(epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        yield {"image": torch.ones(1, 1)}

    optimizer = Plain(net.parameters(), lambda params: torch.optim.SGD(params, lr=0.1))
    trainer = Trainer(
        net,
        lambda net, batch: net(batch["image"]).square().sum(),
        optimizer,
        epochs=2,
        batches=batches,
        validate=lambda net: {"dice": 0.5},
        run_dir=tmp_path,
        progress=False,
        log=[].append,
    )
    before = torch.get_rng_state()
    trainer.fit()
    assert torch.equal(torch.get_rng_state(), before)
