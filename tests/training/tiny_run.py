"""A run of a second in which everything has state; as a script it can be killed anywhere.

Dropout draws from the global generator, batch norms keep statistics, SGD keeps momentum, the loss learns its weights,
the rate falls, an average is kept, and the loader shuffles by the global generator when an epoch starts.
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uumamba.losses import CrossEntropyLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.optim import SAM
from uumamba.runtime.seeds import generator_for, seed_everything
from uumamba.training import SupervisedObjective, Trainer, poly
from uumamba.training import checkpoint as checkpoint_module
from uumamba.training.run_folder import RunFolder

EPOCHS, BATCHES = 4, 5


def shuffled_batches(epoch: int) -> Iterator[dict[str, torch.Tensor]]:
    for index in torch.randperm(BATCHES).tolist():
        image = torch.randn(2, 1, 8, 8, generator=generator_for(epoch, index))
        yield {"image": image, "label": (image > 0).long() + (image > 1)}


def noisy(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return batch | {"image": batch["image"] + 0.1 * torch.randn_like(batch["image"])}


def share_right(net: nn.Module) -> dict[str, float]:
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
        "validate": share_right,
        "scheduler": poly(optimizer, total_steps=EPOCHS * BATCHES),
        "ema_decay": 0.8,
        "run_dir": run_dir,
        "config": {"seed": 0, "optim": {"rho": 0.05, "sizes": (1, 2)}},
        "progress": False,
        "log": [].append,
    }
    return Trainer(net, objective, optimizer, **defaults | options)


def tell_steps(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    print("step", flush=True)
    return noisy(batch)


def hang() -> None:
    print("hangs", flush=True)
    time.sleep(60)


def hang_half_written(save: Callable[..., None]) -> Callable[..., None]:
    """The file of a save is cut in half, as if the disk had taken no more yet."""

    def save_half(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        save(tensors, path, metadata=metadata)
        with path.open("r+b") as stream:
            stream.truncate(path.stat().st_size // 2)
        hang()

    return save_half


def hang_after(function: Callable[..., None]) -> Callable[..., None]:
    def and_hang(*arguments: Any) -> None:
        function(*arguments)
        hang()

    return and_hang


def main(run_dir: str, moment: str) -> None:
    torch.set_num_threads(1)
    if moment == "half written":
        checkpoint_module.save_file = hang_half_written(checkpoint_module.save_file)
    if moment == "last is previous":
        RunFolder._keep_previous = hang_after(RunFolder._keep_previous)
    if moment == "row is written":
        from uumamba.training.run_log import RunLog

        RunLog.append = hang_after(RunLog.append)
    build_trainer(Path(run_dir), augment=tell_steps).fit(resume=True)
    print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
