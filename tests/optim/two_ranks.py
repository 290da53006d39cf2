"""Run by test_distributed.py in its own process: two gloo ranks train a wrapped network and store what they got."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import multiprocessing as mp
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from uumamba.optim import (
    GSAM,
    MSAM,
    SAM,
    AdaptiveTrigger,
    FriendlySAM,
    LookSAM,
    Plain,
    Rule,
    SharpnessAware,
    Slope,
    StaleSAM,
)
from uumamba.optim.sam import along_gradient
from uumamba.runtime.process_end import end_process

RANKS, STEPS = 2, 3
Batch = tuple[Tensor, Tensor]
MEMBERS: dict[str, Callable[..., SharpnessAware]] = {
    "friendly": FriendlySAM,
    "looksam": partial(LookSAM, k=2),
    "trigger": partial(LookSAM, trigger=AdaptiveTrigger(total_steps=2, start=-9.0, end=9.0)),
    "gsam": GSAM,
    "msam": MSAM,
    "stale": StaleSAM,
}


def fresh_net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2)).double()


def batch_of(rank: int, step: int, micro: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(100 * rank + 10 * step + micro)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(5, 2, generator=generator, dtype=torch.float64)


def penalty(net: nn.Module) -> Tensor:
    return 0.1 * torch.stack([param.pow(2).sum() for param in net.parameters()]).sum()


def half_of_both(slope: Slope, second: Sequence[Tensor]) -> list[Tensor]:
    return [(one + two) / 2 for one, two in zip(slope.grads, second, strict=True)]


def product(slope: Slope, second: Sequence[Tensor]) -> list[Tensor]:
    """Not linear, so that it matters whether ranks mix before or after they average."""
    return [one * two for one, two in zip(slope.grads, second, strict=True)]


def every_other(slope: Slope) -> bool:
    slope.numbers["steps"] = slope.numbers.get("steps", 0) + 1
    return slope.numbers["steps"] % 2 == 1


def closures(net: nn.Module, rank: int, step: int, micros: int) -> list[Callable[[], Tensor]]:
    batches = [batch_of(rank, step, micro) for micro in range(micros)]
    return [lambda x=x, y=y: F.mse_loss(net(x), y) for x, y in batches]


def run(name: str, rank: int) -> tuple[nn.Module, SharpnessAware]:
    """Train by scenario; what the names mean stands in the tests."""
    net = DistributedDataParallel(fresh_net(), gradient_as_bucket_view=name.endswith("views"))
    sgd, at_weights, micros = partial(SGD, lr=0.1, momentum=0.9), None, 1
    optimizer: SharpnessAware = MEMBERS.get(name.removesuffix("-views"), SAM)(net.parameters(), sgd, rho=0.2, net=net)
    if name.startswith("plain"):
        optimizer = Plain(net.parameters(), sgd, net=net)
    elif name.startswith("micro"):
        micros, at_weights = 2, partial(penalty, net)
    elif name.startswith("full"):
        micros = 2
        optimizer = SAM(net.parameters(), sgd, rho=0.2, net=net, accumulation="full")
    elif name.startswith("global"):
        micros = 2
        optimizer = SAM(net.parameters(), sgd, rho=0.2, net=net, accumulation="full", perturbation="global")
    elif name.startswith("shared"):
        at_weights = partial(penalty, net)
        rule = Rule(climb=along_gradient, mix=product, due=every_other, shared=True)
        optimizer = SharpnessAware(net.parameters(), sgd, rule=rule, group_defaults={"rho": 0.2}, net=net)
    elif name.startswith("mix"):
        at_weights = partial(penalty, net)
        optimizer = SharpnessAware(
            net.parameters(),
            sgd,
            rule=Rule(climb=along_gradient, mix=half_of_both),
            group_defaults={"rho": 0.2},
            net=net,
        )
    for step in range(STEPS):
        optimizer.step(closures(net, rank, step, micros), at_weights=at_weights)
    return net, optimizer


def run_with_one_broken_rank(rank: int) -> tuple[nn.Module, SharpnessAware]:
    """Only the first pass of rank 1 in step 1 is not finite."""
    net = DistributedDataParallel(fresh_net())
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    optimizer = SAM(net.parameters(), partial(SGD, lr=0.1, momentum=0.9), rho=0.2, net=net, scaler=scaler)
    calls = []
    for step in range(2):
        x, y = batch_of(rank, step)

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            calls.append(None)
            broken = rank == 1 and len(calls) == 3
            return F.mse_loss(net(x), y) * (float("inf") if broken else 1.0)

        optimizer.step(closure)
    return net, optimizer


def refuse_torch_style(rank: int) -> str:
    """What is said when closures that ran backward are accumulated over ranks."""
    net = DistributedDataParallel(fresh_net())
    optimizer = Plain(net.parameters(), partial(SGD, lr=0.1), net=net)

    def closure() -> Tensor:
        x, y = batch_of(rank, 0)
        loss = F.mse_loss(net(x), y)
        loss.backward()
        return loss

    try:
        optimizer.step([closure, closure])
    except ValueError as error:
        return str(error)
    return "accepted"


def work(rank: int, names: list[str], folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    for name in names:
        net, optimizer = run_with_one_broken_rank(rank) if name == "broken" else run(name, rank)
        scale = torch.tensor(0.0 if optimizer.scaler is None else optimizer.scaler.get_scale())
        extra = {"skipped": torch.tensor(optimizer.skipped_steps), "scale": scale}
        save_file(dict(net.module.state_dict()) | extra, folder / f"{name}-{rank}.safetensors")
    (folder / f"refusal-{rank}.txt").write_text(refuse_torch_style(rank))
    dist.destroy_process_group()
    end_process(0)


if __name__ == "__main__":
    mp.spawn(work, args=(sys.argv[2:], Path(sys.argv[1])), nprocs=RANKS)
