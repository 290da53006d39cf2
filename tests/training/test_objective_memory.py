"""Objectives that keep something over steps: when they are told, and that a resumed run finds all of it again."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uumamba.optim import MESA, SAF, SAM, Plain
from uumamba.runtime.seeds import generator_for, seed_everything
from uumamba.training import StoppedOnRequest, Trainer, read_checkpoint

EPOCHS, BATCHES, SAMPLES = 4, 5, 10
Bits = Callable[[Path], dict[str, Any]]


def reshuffled(epoch: int) -> Iterator[dict[str, Tensor]]:
    """Ten samples, two a batch, in an order that the global generator draws when an epoch starts."""
    image = torch.randn(SAMPLES, 6, generator=generator_for("images"))
    for ids in torch.randperm(SAMPLES).split(SAMPLES // BATCHES):
        yield {"image": image[ids], "label": (image[ids, 0] > 0).long(), "sample_id": ids}


def mesa(net: nn.Module) -> nn.Module:
    return MESA(nn.CrossEntropyLoss(), net, decay=0.8, start_step=3)


def saf(net: nn.Module, **options: Any) -> nn.Module:
    return SAF(nn.CrossEntropyLoss(), samples=SAMPLES, classes=2, lag=1, start_epoch=1, **options)


def build(run_dir: Path, make: Callable[[nn.Module], nn.Module]) -> Trainer:
    seed_everything(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
    optimizer = SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1, momentum=0.9), rho=0.05, net=net)
    return Trainer(
        net,
        make(net),
        optimizer,
        epochs=EPOCHS,
        batches=reshuffled,
        ema_decay=0.9,
        run_dir=run_dir,
        progress=False,
        log=[].append,
    )


@pytest.fixture(scope="module", params=[mesa, saf], ids=["MESA", "SAF"])
def make(request: pytest.FixtureRequest) -> Callable[[nn.Module], nn.Module]:
    return request.param


@pytest.fixture(scope="module")
def unstopped(make: Callable[[nn.Module], nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unstopped")
    build(folder, make).fit()
    return folder


def stop_after(trainer: Trainer, steps: int) -> None:
    """End the run by a signal in the step of that number."""
    augmented = iter(range(1, 1000))

    def augment(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if next(augmented) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    trainer.augment = augment
    with pytest.raises(StoppedOnRequest, match="Stopped by SIGTERM"):
        trainer.fit(resume=True)


@pytest.mark.parametrize("stops", [(8,), (10,), (7, 6)], ids=str)
def test_a_stopped_and_resumed_run_equals_one_that_never_stopped_bit_for_bit(
    make: Callable[[nn.Module], nn.Module], unstopped: Path, tmp_path: Path, bits: Bits, stops: tuple[int, ...]
) -> None:
    for steps in stops:
        stop_after(build(tmp_path, make), steps)
    assert read_checkpoint(tmp_path / "last.safetensors").progress["steps_done"] == sum(stops)
    build(tmp_path, make).fit(resume=True)
    assert bits(tmp_path / "last.safetensors") == bits(unstopped / "last.safetensors")


def test_a_run_resumed_with_a_mapped_table_equals_one_with_a_table_in_memory(tmp_path: Path, bits: Bits) -> None:
    make = partial(saf, table=tmp_path / "saf.npy")
    stop_after(build(tmp_path / "stopped", make), 8)
    build(tmp_path / "stopped", make).fit(resume=True)
    build(tmp_path / "memory", saf).fit()
    stopped, memory = (bits(tmp_path / name / "last.safetensors") for name in ("stopped", "memory"))
    assert stopped == memory


def test_the_checkpoint_holds_teacher_and_table_and_they_matter(tmp_path: Path) -> None:
    build(tmp_path / "mesa", mesa).fit()
    kept = read_checkpoint(tmp_path / "mesa" / "last.safetensors")
    assert kept.objective["teacher.n_averaged"] == EPOCHS * BATCHES
    assert not torch.equal(kept.objective["teacher.module.0.weight"], kept.net["0.weight"])
    build(tmp_path / "saf", saf).fit()
    state = read_checkpoint(tmp_path / "saf" / "last.safetensors").objective["_extra_state"]
    assert state["epoch"] == EPOCHS - 1
    assert (state["marks"] == torch.tensor([EPOCHS - 1, EPOCHS])).all(), "the last two epochs of every sample"
    assert state["logits"].dtype == torch.float16


def test_the_trainer_tells_when_an_epoch_begins_and_when_a_step_is_done() -> None:
    told: list[Any] = []

    class Listening(nn.Module):
        def begin_epoch(self, epoch: int) -> None:
            told.append(epoch)

        def forward(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            told.append("pass")
            return net(batch["image"]).square().sum()

        def after_step(self, net: nn.Module) -> None:
            told.append(net)

    net = nn.Linear(2, 1)
    for optimizer, passes in (
        (Plain(net.parameters(), partial(torch.optim.SGD, lr=0.1)), 1),
        (SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1)), 2),
    ):
        told.clear()
        batches = [{"image": torch.ones(1, 2)}] * 2
        Trainer(net, Listening(), optimizer, epochs=2, batches=lambda epoch, found=batches: found, log=[].append).fit()
        step = ["pass"] * passes + [net]
        assert told == [0, *step, *step, 1, *step, *step]
