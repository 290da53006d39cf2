"""Run by test_tram_distributed.py in its own process: two gloo ranks train by TRAM and store what they got."""

import sys
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

from uumamba.optim import TRAM
from uumamba.runtime.process_end import end_process

RANKS, STEPS = 2, 4


def fresh_net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()


def batch_of(rank: int, step: int, micro: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * rank + 10 * step + micro)
    x = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (5,), generator=generator)


def run(name: str, rank: int) -> dict[str, Tensor]:
    """Train by scenario: the form of TRAM, whether the climb is global, and whether gradients are views of buckets."""
    trust, *options = name.split("-")
    net = DistributedDataParallel(fresh_net(), gradient_as_bucket_view="views" in options)
    micros = 2 if "global" in options else 1
    seen: dict[str, Tensor] = {}
    net.module.register_forward_hook(
        lambda module, args, output: seen.update({f"input-{len(seen):02}": args[0].detach().clone()})
    )
    optimizer = TRAM(
        net.parameters(),
        partial(SGD, lr=0.3, momentum=0.9),
        trust=trust,
        sigma=0.3,
        net=net,
        **({"accumulation": "full", "perturbation": "global"} if "global" in options else {}),
    )
    for step in range(STEPS):

        def closure(micro: int, step: int = step) -> tuple[Tensor, Tensor]:
            x, y = batch_of(rank, step, micro)
            logits = net(x)
            return F.cross_entropy(logits, y), logits

        optimizer.step([partial(closure, micro) for micro in range(micros)])
    return dict(net.module.state_dict()) | seen


def work(rank: int, names: list[str], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=RANKS)
    for name in names:
        save_file(run(name, rank), folder / f"{name}-{rank}.safetensors")
    dist.destroy_process_group()
    end_process(0)


if __name__ == "__main__":
    mp.spawn(work, args=(sys.argv[2:], Path(sys.argv[1])), nprocs=RANKS)
