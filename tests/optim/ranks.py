"""Training by two gloo ranks, and by one process on both batches.

test_distributed.py runs this file. A rank that perturbs along its own gradient equals one micro-batch of the one
process, and ranks that perturb along the mean gradient equal its full accumulation. Both have a closed form in
test_accumulation.py.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import multiprocessing as mp
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.utils.data.distributed import DistributedSampler

from tests.optim_members import OPTIMIZERS
from uumamba.optim import SAF, SAM, AdaptiveTrigger, LookSAM, Plain
from uumamba.runtime.errors import UsageError
from uumamba.runtime.process_end import end_process

RANKS, STEPS, SAMPLES, EPOCHS = 2, 4, 11, 6
TRIGGER = AdaptiveTrigger(total_steps=3, start=-9.0, end=9.0)
GLOBAL = {"accumulation": "full", "perturbation": "global"}
# Accumulation of one process that equals two ranks; empty for noise, which differs between ranks.
EQUAL_TO = {"FriendlySAM": "full", "LookSAM": "full", "LookSAM triggered": "full", "TRAM noise": "", "TRAM fisher": ""}
# An optimizer, the accumulation of one process, micro-batches per rank, and options.
SCENARIOS: dict[str, tuple[Callable[..., Any], str, int, dict[str, Any]]] = {
    **{name: (make, EQUAL_TO.get(name, "micro"), 1, {}) for name, make in OPTIMIZERS.items()},
    "LookSAM triggered": (partial(LookSAM, trigger=TRIGGER), "full", 1, {}),
    "SAM, micro-batches": (SAM, "micro", 2, {}),
    "SAM, global": (SAM, "full", 2, GLOBAL),
    "TRAM previous, global": (OPTIMIZERS["TRAM previous"], "full", 2, GLOBAL),
}


class Net(nn.Module):
    """Network with a learned number outside the wrapper."""

    def __init__(self, *, wrapped: bool, views: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
        self.bare = net
        self.net = DistributedDataParallel(net, gradient_as_bucket_view=views) if wrapped else net
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.inputs: list[Tensor] = []
        net.register_forward_hook(lambda module, args, output: self.inputs.append(args[0].detach().clone()))

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": self.net.parameters()}, {"params": [self.weight], "perturb": False}]

    def loss(self, rank: int, step: int, micro: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(100 * rank + 10 * step + micro)
        image = torch.randn(5, 4, generator=generator, dtype=torch.float64)
        logits = self.net(image)
        loss = F.cross_entropy(logits, torch.randint(0, 3, (5,), generator=generator))
        return loss * torch.exp(-self.weight) + self.weight, logits

    def penalty(self) -> Tensor:
        return 0.1 * torch.stack([param.pow(2).sum() for param in self.bare.parameters()]).sum()

    def content(self) -> dict[str, Tensor]:
        noisy = torch.stack(self.inputs)
        return {"weight": self.weight.detach(), "inputs": noisy} | dict(self.bare.state_dict())


def train(name: str, ranks: range, *, wrapped: bool, views: bool = False) -> dict[str, Tensor]:
    """Train on the batches of some ranks and return the network's state."""
    make, accumulation, micros, options = SCENARIOS[name]
    net = Net(wrapped=wrapped, views=views)
    if not wrapped:
        options = options | {"accumulation": accumulation}
    optimizer = make(net.groups(), partial(SGD, lr=0.3, momentum=0.9), net=net.net, max_grad_norm=1.0, **options)
    for step in range(STEPS):
        closures = [partial(net.loss, rank, step, micro) for rank in ranks for micro in range(micros)]
        optimizer.step(closures, at_weights=net.penalty)
    return net.content()


def train_with_one_broken_rank(rank: int) -> dict[str, Tensor]:
    """Take a finite step, then one with infinite loss on rank 1."""
    net, scaler = Net(wrapped=True, views=False), torch.amp.GradScaler("cpu", init_scale=16.0)
    base = partial(SGD, lr=0.3, momentum=0.9)
    optimizer = SAM(net.groups(), base, rho=0.2, net=net.net, scaler=scaler)
    optimizer.step(partial(net.loss, rank, 0, 0))
    before = {f"before.{name}": value.clone() for name, value in net.bare.named_parameters()}
    calls: list[None] = []

    def broken() -> tuple[Tensor, Tensor]:
        calls.append(None)
        loss, logits = net.loss(rank, 1, 0)
        return loss * (float("inf") if rank == 1 and len(calls) == 1 else 1.0), logits

    optimizer.step(broken)
    counts = {"skipped": torch.tensor(optimizer.skipped_steps), "scale": torch.tensor(scaler.get_scale())}
    return net.content() | before | counts


def train_by_saf(ranks: range, table: Path, *, wrapped: bool) -> dict[str, Tensor]:
    """Train on eleven samples, reshuffled between two ranks every epoch.

    The sampler gives one sample to both ranks.
    """
    generator = torch.Generator().manual_seed(8)
    image = torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64)
    label = torch.randint(3, (SAMPLES,), generator=generator)
    torch.manual_seed(3)
    bare = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    net = DistributedDataParallel(bare) if wrapped else bare
    objective = SAF(nn.CrossEntropyLoss(), samples=SAMPLES, classes=3, table=table, lag=2, start_epoch=3)
    optimizer = Plain(net.parameters(), partial(SGD, lr=0.5), net=net)
    losses = []
    for epoch in range(EPOCHS):
        objective.begin_epoch(epoch)
        parts = []
        for rank in ranks:
            sampler = DistributedSampler(range(SAMPLES), num_replicas=RANKS, rank=rank, seed=1)
            sampler.set_epoch(epoch)
            parts.append(torch.tensor(list(sampler)).split(4))
        for of_ranks in zip(*parts, strict=True):
            batches = [{"image": image[ids], "label": label[ids], "sample_id": ids} for ids in of_ranks]
            losses.append(optimizer.step([partial(objective, net, batch) for batch in batches]))
    state = objective.get_extra_state()
    table_of = {name: state[name].contiguous() for name in ("marks", "logits")}
    return table_of | {"losses": torch.stack(losses)} | dict(bare.state_dict())


def gather_uneven_batches(rank: int) -> dict[str, Tensor]:
    """Gather two samples of rank 0 and three of rank 1."""
    objective = SAF(nn.CrossEntropyLoss(), samples=SAMPLES, classes=2)
    objective.begin_epoch(0)
    ids = torch.tensor([0, 1] if rank == 0 else [2, 3, 4])
    image = torch.stack([ids.float(), torch.zeros(len(ids))], dim=1)
    objective(nn.Identity(), {"image": image, "label": torch.zeros_like(ids), "sample_id": ids})
    state = objective.get_extra_state()
    return {name: state[name].contiguous() for name in ("marks", "logits")}


def find_refused_keys(early: SAF) -> str:
    """Return the keys of errors that only several ranks raise."""
    net = Net(wrapped=True, views=False)
    optimizer = Plain(net.groups(), partial(SGD, lr=0.1), net=net.net)

    def torch_style() -> Tensor:
        loss = net.loss(0, 0, 0)[0]
        loss.backward()
        return loss

    early.begin_epoch(0)
    batch = {"image": torch.zeros(1, 2), "label": torch.zeros(1).long(), "sample_id": torch.zeros(1).long()}
    keys = []
    for call in (partial(optimizer.step, [torch_style, torch_style]), partial(early, nn.Identity(), batch)):
        try:
            call()
        except UsageError as error:
            keys.append(error.key)
    return " ".join(keys)


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    early = SAF(nn.CrossEntropyLoss(), samples=SAMPLES, classes=2)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=RANKS)
    for name in SCENARIOS:
        for views in (False, True):
            found = train(name, range(rank, rank + 1), wrapped=True, views=views)
            save_file(found, folder / f"{name}{', views' * views}-{rank}.safetensors")
    save_file(train_with_one_broken_rank(rank), folder / f"broken-{rank}.safetensors")
    save_file(train_by_saf(range(rank, rank + 1), folder / "saf.npy", wrapped=True), folder / f"SAF-{rank}.safetensors")
    save_file(gather_uneven_batches(rank), folder / f"uneven-{rank}.safetensors")
    (folder / f"refused-{rank}.txt").write_text(find_refused_keys(early), encoding="utf-8")
    dist.destroy_process_group()
    end_process(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    started = mp.spawn(work, args=(place,), nprocs=RANKS, join=False)
    for scenario, (_, equal_to, _, _) in SCENARIOS.items():
        if equal_to:
            save_file(train(scenario, range(RANKS), wrapped=False), place / f"{scenario}-both.safetensors")
    save_file(train_by_saf(range(RANKS), place / "both.npy", wrapped=False), place / "SAF-both.safetensors")
    while not started.join():
        pass
