"""A resumed run equals an uninterrupted one, bit for bit."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.tiny_run import act_before, assert_same_run, build_trainer, die, rows_of
from uumamba.optim import Plain
from uumamba.runtime.errors import EXIT_STOPPED_RESUMABLE
from uumamba.training import DamagedCheckpointError, StoppedOnRequest, read_checkpoint, save_checkpoint


def progress_of(folder: Path) -> dict[str, Any]:
    return read_checkpoint(folder / "last.safetensors").progress


@pytest.mark.parametrize(
    ("part", "call"), [("augment", 1), ("augment", 8), ("augment", 20), ("validate", 1), ("validate", 4)]
)
def test_a_run_resumed_after_a_crash_equals_an_uninterrupted_one(
    unstopped: Path, tmp_path: Path, part: str, call: int
) -> None:
    die(build_trainer(tmp_path), part, call)
    build_trainer(tmp_path).fit(resume=True)
    assert_same_run(tmp_path, unstopped, "last", "previous", "best")


@pytest.mark.parametrize(
    ("calls", "number"),
    [((1,), signal.SIGUSR1), ((8,), signal.SIGTERM), ((10,), signal.SIGUSR1), ((3, 2), signal.SIGTERM)],
)
def test_a_signal_stops_after_the_step_and_the_resumed_run_equals_an_uninterrupted_one(
    unstopped: Path, tmp_path: Path, calls: tuple[int, ...], number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    for call in calls:
        trainer = act_before(build_trainer(tmp_path), "augment", call, lambda: os.kill(os.getpid(), number))
        with pytest.raises(StoppedOnRequest, match=number.name) as stopped:
            trainer.fit(resume=True)
        assert stopped.value.exit_code == EXIT_STOPPED_RESUMABLE
        assert signal.getsignal(number) == before
    assert progress_of(tmp_path)["steps_done"] == sum(calls)
    build_trainer(tmp_path).fit(resume=True)
    assert_same_run(tmp_path, unstopped)


def test_a_signal_during_validation_stops_after_the_epoch(tmp_path: Path) -> None:
    trainer = act_before(build_trainer(tmp_path), "validate", 2, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(StoppedOnRequest, match="in epoch 3 after 0 steps"):
        trainer.fit()
    assert progress_of(tmp_path)["epochs_done"] == 2


def test_an_error_after_a_stop_request_is_reported_as_the_stop(tmp_path: Path) -> None:
    def lose_worker() -> None:
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("DataLoader worker was killed")

    with pytest.raises(StoppedOnRequest, match=r"SIGTERM \(DataLoader worker was killed\)"):
        act_before(build_trainer(tmp_path), "augment", 7, lose_worker).fit()


def test_a_checkpoint_between_two_steps_is_written_when_due_and_resumes_bit_for_bit(
    unstopped: Path, tmp_path: Path
) -> None:
    found = {}
    for minutes in (0.0, 1000.0, None):
        folder = tmp_path / str(minutes)
        die(build_trainer(folder, save_every_minutes=minutes), "augment", 9)
        found[minutes] = progress_of(folder)["steps_done"]
    assert found == {0.0: 8, 1000.0: 5, None: 5}, "five steps are an epoch"
    build_trainer(tmp_path / "0.0").fit(resume=True)
    assert_same_run(tmp_path / "0.0", unstopped)


def test_the_wall_clock_and_the_age_of_files_do_not_matter(
    unstopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The clock jumps by decades between steps, and the older checkpoint has the newer date.
    jumps = iter(range(10**6))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(jumps) * 1e9 + 2e9)
    die(build_trainer(tmp_path, save_every_minutes=1000), "augment", 13)
    for name, year_s in (("last", 0), ("previous", 4e9), ("best", 2e9), ("metrics", 1e9)):
        for path in tmp_path.glob(f"{name}.*"):
            os.utime(path, (year_s, year_s))
    said: list[str] = []
    build_trainer(tmp_path, log=said.append).fit(resume=True)
    assert said[0] == "resuming after epoch 2/4", "from last, in spite of its date"
    assert_same_run(tmp_path, unstopped)


def test_a_complete_run_is_unchanged(unstopped: Path) -> None:
    before = (unstopped / "last.safetensors").read_bytes()
    build_trainer(unstopped, batches=None).fit(resume=True)
    assert progress_of(unstopped)["epochs_done"] == 4
    assert (unstopped / "last.safetensors").read_bytes() == before


def test_resuming_with_fewer_epochs_than_were_trained_ends_at_once(tmp_path: Path) -> None:
    build_trainer(tmp_path, epochs=3).fit()
    before = (tmp_path / "last.safetensors").read_bytes()
    build_trainer(tmp_path, epochs=2).fit(resume=True, force=True)
    assert (tmp_path / "last.safetensors").read_bytes() == before


def test_a_run_starts_only_without_a_checkpoint_and_resumes_only_with_a_folder(tmp_path: Path, refused: Any) -> None:
    build_trainer(tmp_path / "new", epochs=1).fit(resume=True)
    assert (tmp_path / "new" / "last.safetensors").is_file()
    with refused(str(tmp_path / "new"), got="a checkpoint"):
        build_trainer(tmp_path / "new", epochs=1).fit()
    with refused("folder", got=None):
        build_trainer(None).fit(resume=True)


def test_another_configuration_is_refused_with_the_difference_unless_forced(tmp_path: Path, refused: Any) -> None:
    build_trainer(tmp_path, epochs=1).fit()
    other = {"seed": 0, "optim": {"rho": 0.1, "sizes": [1, 2]}, "net": {}}
    with refused("config", got={"net": {}, "optim.rho": 0.1}) as error:
        build_trainer(tmp_path, config=other).fit(resume=True)
    assert error.value.expected.startswith("{'net': 'absent', 'optim.rho': 0.05}"), "a tuple is a list in JSON"
    build_trainer(tmp_path, epochs=2, config=other).fit(resume=True, force=True)
    assert read_checkpoint(tmp_path / "last.safetensors").config == other
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == other


def test_a_stored_configuration_is_completed_before_it_is_compared(tmp_path: Path, refused: Any) -> None:
    build_trainer(tmp_path, epochs=1, config={"optim": {"rho": 0.05}}).fit()

    def complete(stored: Any) -> Any:
        return {"optim": {"norm": 2} | stored["optim"]}

    options: dict[str, Any] = {"epochs": 1, "complete_config": complete}
    with refused("config", got={"optim.norm": 1}):
        build_trainer(tmp_path, config={"optim": {"rho": 0.05, "norm": 1}}, **options).fit(resume=True)
    newer = {"optim": {"rho": 0.05, "norm": 2}}
    build_trainer(tmp_path, config=newer, **options).fit(resume=True)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == newer


def test_a_checkpoint_of_another_network_is_refused_in_one_line(tmp_path: Path, refused: Any) -> None:
    build_trainer(tmp_path, epochs=1).fit()
    for other in (nn.Sequential(*(nn.Conv2d(1, 1, 1) for _ in range(50))), nn.Conv2d(4, 7, 1)):
        trainer = build_trainer(tmp_path)
        trainer.state.net = other
        with refused("network") as error:
            trainer.fit(resume=True)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 400


def spoil(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    if damage == "one bit flipped":
        content[-5] ^= 1
    else:
        content = content[: len(content) // 2] if damage == "truncated" else bytearray()
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["truncated", "one bit flipped", "emptied"])
def test_a_damaged_checkpoint_falls_back_to_the_previous_one(unstopped: Path, tmp_path: Path, damage: str) -> None:
    die(build_trainer(tmp_path), "augment", 17)
    spoil(tmp_path / "last.safetensors", damage)
    said: list[str] = []
    die(build_trainer(tmp_path, log=said.append), "augment", 6, resume=True)
    assert "last.safetensors: got a damaged file" in said[0]
    assert said[1] == "resuming after epoch 2/4"
    kept = read_checkpoint(tmp_path / "previous.safetensors").progress
    assert kept["epochs_done"] == 2, "the undamaged checkpoint was not replaced"
    build_trainer(tmp_path).fit(resume=True)
    assert_same_run(tmp_path, unstopped, "last")


def test_two_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    build_trainer(tmp_path, epochs=2).fit()
    for name in ("last", "previous"):
        spoil(tmp_path / f"{name}.safetensors", "truncated")
    with pytest.raises(DamagedCheckpointError, match=r"previous.safetensors: got a damaged file"):
        build_trainer(tmp_path).fit(resume=True)


def test_rows_after_the_checkpoint_are_removed(unstopped: Path, tmp_path: Path) -> None:
    die(build_trainer(tmp_path), "augment", 12)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"epoch": 2, "loss": 99.0}\n{"epoch": 3, "lo')
    build_trainer(tmp_path).fit(resume=True)
    assert_same_run(tmp_path, unstopped)


def test_momentum_is_restored_in_the_memory_layout_of_its_weight(tmp_path: Path) -> None:
    trainers = [build_trainer(tmp_path, epochs=1), build_trainer(tmp_path, epochs=2)]
    for trainer in trainers:
        weight = trainer.net[0].weight = nn.Parameter(torch.randn(4, 2, 3, 3).to(memory_format=torch.channels_last))
        trainer.optimizer = trainer.state.optimizer = Plain(
            trainer.net.parameters(), lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)
        )
        trainer.optimizer.step(lambda weight=weight: weight.square().sum())
    save_checkpoint(tmp_path / "last.safetensors", trainers[0].state.checkpoint(None))
    trainers[1].state.restore(read_checkpoint(tmp_path / "last.safetensors"))
    before, after = (each.optimizer.base.state[each.net[0].weight]["momentum_buffer"] for each in trainers)
    assert after.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(after, before)


def test_an_average_added_on_resume_starts_at_the_weights(tmp_path: Path) -> None:
    build_trainer(tmp_path, epochs=1, ema_decay=None).fit()
    trainer = build_trainer(tmp_path, epochs=1)
    trainer.fit(resume=True)
    assert trainer.average is not None
    for mean, weight in zip(trainer.average.module.parameters(), trainer.net.parameters(), strict=True):
        assert torch.equal(mean, weight)


def test_the_trainer_draws_no_random_number(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path, epochs=2, augment=None, batches=lambda epoch: [{"image": torch.ones(1, 1, 8, 8)}])
    trainer.net[3] = nn.Identity()  # in place of the dropout
    trainer.objective.forward = lambda net, batch: net(batch["image"]).square().sum()
    before = torch.get_rng_state()
    trainer.fit()
    assert torch.equal(torch.get_rng_state(), before)
    assert len(rows_of(tmp_path)) == 2
