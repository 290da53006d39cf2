"""Short run in which every part has state, and comparisons of runs.

Dropout draws from the global generator, batch norm has statistics, SGD has momentum, the loss learns its weights, the
rate decays, an average is updated, and the loader shuffles by the global generator when an epoch starts.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.flat_trainer import make_trainer
from uumamba.losses import CrossEntropyLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.optim import SAM
from uumamba.runtime.seeds import generator_for, seed_everything
from uumamba.runtime.tree import flatten
from uumamba.training import RunLog, SupervisedObjective, Trainer, poly, read_checkpoint

EPOCHS, BATCHES = 4, 5
# Fields of the progress that differ when a run is repeated.
CLOCK_READINGS = ("seconds", "waited_seconds", "used_seconds", "longest_seconds")
Batch = dict[str, Any]


class PulledPlugError(Exception):
    """Error that stands for the death of the process."""


def shuffled_batches(epoch: int) -> Iterator[Batch]:
    for index in torch.randperm(BATCHES).tolist():
        image = torch.randn(2, 1, 8, 8, generator=generator_for(epoch, index))
        yield {"image": image, "label": (image > 0).long() + (image > 1)}


def noisy(batch: Batch) -> Batch:
    return batch | {"image": batch["image"] + 0.1 * torch.randn_like(batch["image"])}


def accuracy(net: nn.Module) -> dict[str, float]:
    image = torch.randn(4, 1, 8, 8, generator=generator_for("validation"))
    right = (net(image).argmax(dim=1, keepdim=True) == (image > 0).long() + (image > 1)).float()
    return {"dice": right.mean().item()}


def build_trainer(run_dir: Path | None, **options: Any) -> Trainer:
    seed_everything(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 3, 1)
    )
    objective = SupervisedObjective(
        UncertaintyWeightedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss()})
    )
    groups = [{"params": [*net.parameters()]}, {"params": [*objective.parameters()], "perturb": False}]
    optimizer = SAM(groups, partial(torch.optim.SGD, lr=0.05, momentum=0.9), rho=0.05, net=net)
    defaults: dict[str, Any] = {
        "epochs": EPOCHS,
        "batches": shuffled_batches,
        "augment": noisy,
        "validate": accuracy,
        "scheduler": poly(optimizer, total_steps=EPOCHS * BATCHES),
        "ema_decay": 0.8,
        "run_dir": run_dir,
        "config": {"seed": 0, "optim": {"rho": 0.05, "sizes": (1, 2)}},
        "progress": False,
        "log": [].append,
    }
    return make_trainer(net, objective, optimizer, **defaults | options)


def pull_plug() -> None:
    raise PulledPlugError


def act_before(trainer: Trainer, part: str, number: int, act: Callable[[], None]) -> Trainer:
    """Call ``act`` before the ``number``-th call of the trainer's ``part``, augment or validate."""
    calls = iter(range(1, 10**6))

    def count(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def counted(argument: Any) -> Any:
            if next(calls) == number:
                act()
            return function(argument)

        return counted

    if part == "augment":
        trainer.prefetcher.augment = count(trainer.prefetcher.augment or (lambda batch: batch))
    else:
        assert trainer.validation is not None
        trainer.validation = replace(trainer.validation, run=count(trainer.validation.run))
    return trainer


def die(trainer: Trainer, part: str, number: int, *, resume: bool = False) -> None:
    """Train until an error in the ``number``-th call of ``part``."""
    with pytest.raises(PulledPlugError):
        act_before(trainer, part, number, pull_plug).fit(resume=resume)


def bits(path: Path) -> dict[str, Any]:
    """Return a checkpoint without times, with tensors as bytes."""
    checkpoint = vars(read_checkpoint(path))
    for name in CLOCK_READINGS:
        checkpoint["progress"].pop(name)
    tensors, rest = flatten(checkpoint)
    return {"rest": rest} | {
        name: (tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def without_domain(batch: Batch) -> Batch:
    return {key: value for key, value in batch.items() if key != "domain"}


def assert_same_weights(found: nn.Module, expected: nn.Module, tolerance: float = 0.0) -> None:
    for one, other in zip(found.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return RunLog(folder / "metrics.jsonl").rows()


def assert_same_run(found: Path, expected: Path, *names: str) -> None:
    """Compare checkpoints bit for bit, and rows except for times."""
    for name in names or ("last", "best"):
        assert bits(found / f"{name}.safetensors") == bits(expected / f"{name}.safetensors"), name
    timeless = [[row | {"seconds": None, "data_wait": None} for row in rows_of(folder)] for folder in (found, expected)]
    assert timeless[0] == timeless[1]
