"""Runs that one process or several train, by name; as a script, one process of a group whose variables are set."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uumamba.domain_generalization import UDIM, StylePerturbation
from uumamba.losses import CrossEntropyLoss, FocalLoss, UncertaintyWeightedLoss
from uumamba.optim import MESA, SAM, LookSAM, Plain
from uumamba.runtime.errors import EndedWithAnother, UsageError, UumambaError
from uumamba.runtime.process_end import end_process
from uumamba.runtime.rank_group import joined
from uumamba.runtime.rank_watch import GRACE_S
from uumamba.runtime.seeds import generator_for, seed_everything
from uumamba.runtime.stop import StopRequest
from uumamba.training import ALONE, Ranks, SupervisedObjective, Trainer, poly
from uumamba.training.budget import Budget
from uumamba.training.schedule import by_budget

EPOCHS, BATCHES, BATCH = 3, 4, 4
MEMBERS: dict[str, Callable[..., Any]] = {
    "plain": Plain,
    "global": partial(SAM, rho=0.2, perturbation="global"),
    "rank": partial(SAM, rho=0.2),
    "looksam": partial(LookSAM, rho=0.2, k=2),
    "mesa": Plain,
    "udim": partial(SAM, rho=0.2, perturbation="global"),
}


def batches(epoch: int, ranks: Ranks = ALONE, *, dtype: torch.dtype = torch.float64) -> Iterator[dict[str, Any]]:
    """Each rank's share of the batches; the labels of a rank's share are unlike another's."""
    for index in range(BATCHES):
        image = torch.randn(BATCH, 1, 6, 6, generator=generator_for(epoch, index), dtype=dtype)
        label = (image > torch.arange(BATCH).view(-1, 1, 1, 1) % 2).long()
        batch = {"image": image, "label": label, "domain": ["odd" if sample % 2 else "even" for sample in range(BATCH)]}
        yield {key: value[ranks.rank :: ranks.count] for key, value in batch.items()}


def objective_for(net: nn.Module, name: str) -> nn.Module:
    loss = UncertaintyWeightedLoss({"distribution": CrossEntropyLoss(), "pixel": FocalLoss()})
    return (MESA(loss, net, decay=0.5) if name == "mesa" else SupervisedObjective(loss)).double()


def udim_of(net: nn.Module, loss: Any) -> UDIM:
    """With rho 0, so that a sample's ascent does not hear of the others, and with all voxels."""
    style = StylePerturbation(0.3)
    return UDIM(net, loss, style, lambda1=3e4, lambda2=1.0, rho=0.0, warmup_steps=2, voxels_a_class=36)


def build(name: str, ranks: Ranks = ALONE, **options: Any) -> Trainer:
    """A run without anything random, whose loss is a mean over samples, in double precision."""
    seed_everything(0)
    torch.manual_seed(torch.initial_seed() % 1000 + ranks.rank)  # the first rank's weights must win
    body = (nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Tanh(), nn.ConvTranspose2d(4, 2, 3))
    bare = nn.Sequential(*body, *([nn.Tanh(), nn.Conv2d(2, 2, 1)] if name == "udim" else []))
    net = ranks.wrap(bare.double())
    objective = objective_for(net, name)
    groups = [{"params": [*net.parameters()]}, {"params": [*objective.parameters()], "perturb": False}]
    groups[1]["params"] = [each for each in groups[1]["params"] if each.requires_grad]
    optimizer = MEMBERS[name](groups, partial(torch.optim.SGD, lr=0.1, momentum=0.9), net=net, max_grad_norm=0.3)
    defaults: dict[str, Any] = {
        "epochs": EPOCHS,
        "batches": partial(batches, ranks=ranks),
        "validate": lambda net: {"dice": 0.5 + ranks.rank},
        "scheduler": poly(optimizer, total_steps=EPOCHS * BATCHES),
        "method": udim_of(net, objective.loss) if name == "udim" else None,
        "ema_decay": 0.8,
        "ranks": ranks,
        "progress": False,
        "log": [].append,
    }
    return Trainer(net, objective, optimizer, **defaults | options)


def build_random(run_dir: Path, ranks: Ranks = ALONE, **options: Any) -> Trainer:
    """A run with dropout, and with running statistics that each rank would find others of."""
    seed_everything(0)
    net = ranks.wrap(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Conv2d(4, 2, 1))
    )
    objective = MESA(UncertaintyWeightedLoss({"distribution": CrossEntropyLoss()}), net, decay=0.5)
    learned = [each for each in objective.parameters() if each.requires_grad]
    groups = [{"params": [*net.parameters()]}, {"params": learned, "perturb": False}]
    optimizer = SAM(groups, partial(torch.optim.SGD, lr=0.1, momentum=0.9), rho=0.1, net=net)
    defaults: dict[str, Any] = {
        "epochs": EPOCHS,
        "batches": partial(batches, ranks=ranks, dtype=torch.float32),
        "ema_decay": 0.8,
        "run_dir": run_dir,
        "config": {"seed": 0},
        "ranks": ranks,
        "progress": False,
        "log": lambda sentence: print(f"rank {ranks.rank}: {sentence}", flush=True),
    }
    return Trainer(net, objective, optimizer, **defaults | options)


def equal_runs(folder: Path, ranks: Ranks) -> None:
    """All the members, one after another in one group."""
    for name in MEMBERS:
        build(name, ranks, run_dir=folder / name).fit()


def stop_in_epoch(number: int, ranks: Ranks, rank: int, batch: dict[str, Any]) -> dict[str, Any]:
    """Augmentation that makes one rank ask for a stop in its ``number``-th step."""
    stop_in_epoch.steps = getattr(stop_in_epoch, "steps", 0) + 1
    if stop_in_epoch.steps == number and ranks.rank == rank:
        signal.raise_signal(signal.SIGTERM)
    return batch


def whole(folder: Path, ranks: Ranks) -> None:
    build_random(folder, ranks).fit(resume=True)


def stopped(folder: Path, ranks: Ranks) -> None:
    """Rank 1 alone is asked to stop in the middle of the second epoch."""
    build_random(folder, ranks, augment=partial(stop_in_epoch, BATCHES + 2, ranks, 1)).fit()


def stopped_while_saving(folder: Path, ranks: Ranks) -> None:
    """The first rank's disk takes longer over a checkpoint than an ended group leaves a process to live."""
    trainer = build_random(folder, ranks, augment=partial(stop_in_epoch, BATCHES + 2, ranks, 1))
    if trainer.folder is not None:
        save = trainer.folder.save

        def save_slowly(*arguments: Any, **options: Any) -> None:
            time.sleep(GRACE_S + 2)
            save(*arguments, **options)

        trainer.folder.save = save_slowly  # type: ignore[method-assign]  # the same folder on a slow disk
    trainer.fit()


def asked_at_the_end(folder: Path, ranks: Ranks) -> None:
    """The first rank goes on alone, as when it predicts, and both are asked to stop."""
    (folder / f"ready_{ranks.rank}").touch()
    if not ranks.first:
        return
    with StopRequest() as stop:
        while stop.asked is None:
            time.sleep(0.05)
        time.sleep(1.0)  # the other one was asked before it heard of this
        stop.follow("in its work after training")


def failing(folder: Path, ranks: Ranks) -> None:
    """Rank 1 finds something bad in its data."""

    def spoil(batch: dict[str, Any]) -> dict[str, Any]:
        if ranks.rank == 1:
            raise UumambaError("patient007: its label holds 9; correct it.")
        return batch

    build_random(folder, ranks, augment=spoil).fit()


def lost(folder: Path, ranks: Ranks, *, number: signal.Signals) -> None:
    """Rank 1 is killed, or stands still, in the third step."""

    def vanish(batch: dict[str, Any]) -> dict[str, Any]:
        vanish.steps = getattr(vanish, "steps", 0) + 1
        if ranks.rank == 1 and vanish.steps == 3:
            print(f"gone {time.time()}", flush=True)
            os.kill(os.getpid(), number)
        return batch

    build_random(folder, ranks, augment=vanish).fit()


def waiting(folder: Path, ranks: Ranks) -> None:
    """The first rank works alone, and fails."""

    def work() -> None:
        time.sleep(0.5)
        raise UsageError("the raw folder is empty; give another.")

    ranks.first_alone(work)


def budgeted(folder: Path, ranks: Ranks) -> None:
    """Each rank's clock goes at a pace of its own; what the learning rates were is written beside the checkpoints."""
    rates: list[float] = []
    budget = Budget(1.0, clock=lambda: (100 + ranks.rank) * time.monotonic())
    trainer = build_random(folder, ranks, budget=budget, epochs=1000)
    trainer.scheduler = by_budget(trainer.optimizer, budget, total_steps=10**9, power=1.0)
    trainer.optimizer.register_step_pre_hook(lambda *_: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    trainer.fit()
    (folder / f"rates_{ranks.rank}.json").write_text(json.dumps(rates), encoding="utf-8")


RUNS: dict[str, Callable[[Path, Ranks], None]] = {
    "equal": equal_runs,
    "whole": whole,
    "stopped": stopped,
    "failing": failing,
    "killed": partial(lost, number=signal.SIGKILL),
    "frozen": partial(lost, number=signal.SIGSTOP),
    "waiting": waiting,
    "stopped while saving": stopped_while_saving,
    "asked at the end": asked_at_the_end,
    "budgeted": budgeted,
}


def main(folder: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    group: AbstractContextManager[Ranks] = joined("cpu", silence_s=4.0) if "RANK" in os.environ else nullcontext(ALONE)
    with group as ranks:
        for name in names:
            RUNS[name](Path(folder) / name if name == "equal" else Path(folder), ranks)


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2:])
    except UumambaError as error:
        if not isinstance(error, EndedWithAnother):  # as the command line does
            print(error, file=sys.stderr, flush=True)
        end_process(error.exit_code)
    end_process(0)
