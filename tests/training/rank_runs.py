"""Runs of one or several ranks; the script runs two ranks."""

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # here, so that what an optimizer imports late is imported once for all forks
from torch import nn

from tests.forked_ranks import run_groups
from tests.training.flat_trainer import make_trainer
from uumamba.domain_generalization import UDIM, StylePerturbation
from uumamba.losses import CrossEntropyLoss, FocalLoss, UncertaintyWeightedLoss
from uumamba.optim import MESA, SAM, LookSAM, Plain
from uumamba.runtime import rank_group, rank_watch
from uumamba.runtime.observer import Observer, RunView
from uumamba.runtime.rank_watch import RankWatch
from uumamba.runtime.ranks import Ranks
from uumamba.runtime.seeds import generator_for, seed_everything
from uumamba.training import ALONE, Budget, SupervisedObjective, Trainer, by_budget, poly

EPOCHS, BATCHES, BATCH = 3, 4, 4
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
MEMBERS: dict[str, Callable[..., Any]] = {
    "plain": Plain,
    "global": partial(SAM, rho=0.2, perturbation="global"),
    "rank": partial(SAM, rho=0.2),
    "looksam": partial(LookSAM, rho=0.2, k=2),
    "mesa": Plain,
    "udim": partial(SAM, rho=0.2, perturbation="global"),
}


def batches(epoch: int, ranks: Ranks = ALONE, *, dtype: torch.dtype = torch.float64) -> Iterator[dict[str, Any]]:
    """Yield a rank's share of the batches; the shares' labels differ."""
    for index in range(BATCHES):
        image = torch.randn(BATCH, 1, 6, 6, generator=generator_for(epoch, index), dtype=dtype)
        label = (image > torch.arange(BATCH).view(-1, 1, 1, 1) % 2).long()
        batch = {"image": image, "label": label, "domain": ["odd" if sample % 2 else "even" for sample in range(BATCH)]}
        yield {key: value[ranks.rank :: ranks.count] for key, value in batch.items()}


def build(name: str, ranks: Ranks = ALONE, **options: Any) -> Trainer:
    """Build a deterministic float64 run whose loss is a mean over samples."""
    seed_everything(0)
    torch.manual_seed(torch.initial_seed() % 1000 + ranks.rank)  # rank 0's weights must win
    body = (nn.Conv2d(1, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.Tanh(), nn.ConvTranspose2d(4, 2, 3))
    head = (nn.Tanh(), nn.Conv2d(2, 2, 1)) if name == "udim" else ()
    net = ranks.wrap(nn.Sequential(*body, *head).double())
    loss = UncertaintyWeightedLoss({"distribution": CrossEntropyLoss(), "pixel": FocalLoss()})
    objective = (MESA(loss, net, decay=0.5) if name == "mesa" else SupervisedObjective(loss)).double()
    # With rho 0, so that the ascent of a sample does not depend on other samples, and with all voxels.
    options_of_udim = {"lambda1": 3e4, "lambda2": 1.0, "rho": 0.0, "warmup_steps": 2, "voxels_a_class": 36}
    optimizer = MEMBERS[name](groups_of(net, objective), SGD, net=net, max_grad_norm=0.3)
    defaults: dict[str, Any] = {
        "epochs": EPOCHS,
        "batches": partial(batches, ranks=ranks),
        "validate": lambda net: {"dice": 0.5 + ranks.rank},
        "scheduler": poly(optimizer, total_steps=EPOCHS * BATCHES),
        "method": UDIM(net, objective.loss, StylePerturbation(0.3), **options_of_udim) if name == "udim" else None,
        "ema_decay": 0.8,
        "ranks": ranks,
        "log": [].append,
    }
    return make_trainer(net, objective, optimizer, **defaults | options)


def build_random(run_dir: Path, ranks: Ranks = ALONE, *, make_schedule: Any = None, **options: Any) -> Trainer:
    """Build a run with dropout and batch norm."""
    seed_everything(0)
    bare = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3), nn.Conv2d(4, 2, 1))
    net = ranks.wrap(bare)
    objective = MESA(UncertaintyWeightedLoss({"distribution": CrossEntropyLoss()}), net, decay=0.5)
    defaults: dict[str, Any] = {
        "epochs": EPOCHS,
        "batches": partial(batches, ranks=ranks, dtype=torch.float32),
        "ema_decay": 0.8,
        "run_dir": run_dir,
        "ranks": ranks,
        "log": [].append,
    }
    optimizer = SAM(groups_of(net, objective), SGD, rho=0.1, net=net)
    scheduler = None if make_schedule is None else make_schedule(optimizer)
    return make_trainer(net, objective, optimizer, scheduler=scheduler, **defaults | options)


def groups_of(net: nn.Module, objective: nn.Module) -> list[dict[str, Any]]:
    learned = [each for each in objective.parameters() if each.requires_grad]
    return [{"params": [*net.parameters()]}, {"params": learned, "perturb": False}]


def train_members(folder: Path, ranks: Ranks) -> None:
    for name in MEMBERS:
        build(name, ranks, run_dir=folder / name).fit()


def train(folder: Path, ranks: Ranks) -> None:
    build_random(folder / "run", ranks).fit(resume=True)


def stop(folder: Path, ranks: Ranks, *, save_s: float = 0.0) -> None:
    """Stop rank 1 in the second epoch; ``save_s`` slows rank 0's disk."""
    trainer = build_random(folder / "run", ranks)

    def augment(batch: dict[str, Any]) -> dict[str, Any]:
        if ranks.rank == 1 and trainer.state.progress.steps_done == BATCHES + 1:
            signal.raise_signal(signal.SIGTERM)
        return batch

    trainer.prefetcher.augment = augment
    if trainer.folder is not None:
        save = trainer.folder.save

        def save_slowly(*arguments: Any, **options: Any) -> None:
            time.sleep(save_s)
            save(*arguments, **options)

        trainer.folder.save = save_slowly  # type: ignore[method-assign]
    trainer.fit()


EVENTS = ("on_start", "on_epoch_start", "on_step", "on_epoch_end", "on_epoch_saved", "on_end", "state_dict")


class Counter(Observer):
    """Observer of all ranks with state."""

    rank_zero_only = False
    key = "counter"
    steps = 0

    def on_step(self, run: RunView) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}


def fail_in(event: str, ranks: Ranks, *, on_rank: int, **attributes: Any) -> Observer:
    """Make an observer of all ranks whose method fails on one rank."""

    def fail(self: Observer, *_: Any) -> dict[str, Any]:
        if ranks.rank == on_rank:
            raise OSError("no space left")
        return {}

    name = f"{event.title().replace('_', '')}Fails"
    methods: dict[str, Any] = {event: fail, "key": f"{event}_{on_rank}", "rank_zero_only": False}
    return type(name, (Observer,), methods | attributes)()


def train_observed(folder: Path, ranks: Ranks) -> None:
    """Train with observers that fail in each method on rank 0 or rank 1, and in a display on rank 0."""

    def broken_log(sentence: str) -> None:
        raise OSError("the terminal is closed")

    broken = [fail_in(event, ranks, on_rank=rank) for event in EVENTS for rank in (0, 1)]
    build_random(folder / "run", ranks, observers=(Counter(),), epochs=1).fit()
    loading = fail_in("load_state_dict", ranks, on_rank=1, key="counter")
    build_random(folder / "run", ranks, observers=(loading, *broken), log=broken_log).fit(resume=True)


def train_by_budget(folder: Path, ranks: Ranks) -> None:
    """Train with clocks of different pace, and write each rank's learning rates."""
    rates: list[float] = []
    budget = Budget(3.0, clock=lambda: (100 + ranks.rank) * time.monotonic())
    schedule = partial(by_budget, budget=budget, total_steps=10**9, power=1.0)
    trainer = build_random(folder / "run", ranks, make_schedule=schedule, epochs=1000)
    trainer.optimizer.register_step_pre_hook(lambda *_: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    trainer.fit()
    (folder / f"rates_{ranks.rank}.json").write_text(json.dumps(rates), encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    rank_watch.LEAVE_WITHIN_S, grace_s = 3.0, 1.0
    rank_group.RankWatch = partial(RankWatch, grace_s=grace_s)  # type: ignore[misc,assignment]
    slow_disk = partial(stop, save_s=2 * (grace_s + rank_watch.BEAT_S))  # longer than an ended group's process may live
    jobs = {"members": train_members, "whole": train, "stopped": stop, "slow disk": slow_disk}
    run_groups(root, jobs | {"observed": train_observed})
    shutil.copytree(root / "stopped" / "run", root / "resumed" / "run")
    run_groups(root, {"resumed": train, "budget": train_by_budget})
