"""Run by test_saf.py in its own process: two gloo ranks whose sampler deals the samples out anew every epoch."""

import sys
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch import multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

from uumamba.optim import SAF, Plain
from uumamba.runtime.process_end import end_process

RANKS, EPOCHS, SAMPLES, CLASSES = 2, 8, 11, 3


def fresh_net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)).double()


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(8)
    image = torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64)
    return TensorDataset(image, torch.randint(CLASSES, (SAMPLES,), generator=generator), torch.arange(SAMPLES))


def train(folder: Path) -> dict[str, Tensor]:
    """Eleven samples for two ranks: the sampler gives one of them out twice."""
    net = DistributedDataParallel(fresh_net())
    table = folder / "saf.npy"
    objective = SAF(nn.CrossEntropyLoss(), samples=SAMPLES, classes=CLASSES, table=table, lag=2, start_epoch=3)
    optimizer = Plain(net.parameters(), partial(SGD, lr=0.5), net=net)
    sampler = DistributedSampler(data(), seed=1)
    losses, ids = [], {}
    for epoch in range(EPOCHS):
        sampler.set_epoch(epoch)
        objective.begin_epoch(epoch)
        for step, (image, label, sample_id) in enumerate(DataLoader(data(), batch_size=3, sampler=sampler)):
            batch = {"image": image, "label": label, "sample_id": sample_id}
            losses.append(optimizer.step(partial(objective, net, batch)))
            ids[f"ids-{epoch}-{step}"] = sample_id
    state = objective.get_extra_state()
    weights = {f"net.{name}": value for name, value in net.module.state_dict().items()}
    table_of = {name: state[name].contiguous() for name in ("marks", "logits")}
    return ids | weights | table_of | {"losses": torch.stack(losses)}


def uneven(rank: int) -> dict[str, Tensor]:
    """Rank 0 has two samples and rank 1 three; each one's answer is its number."""
    objective = SAF(nn.CrossEntropyLoss(), samples=SAMPLES, classes=2)
    objective.begin_epoch(0)
    ids = torch.tensor([0, 1] if rank == 0 else [2, 3, 4])
    image = torch.stack([ids.float(), torch.zeros(len(ids))], dim=1)
    objective(nn.Identity(), {"image": image, "label": torch.zeros_like(ids), "sample_id": ids})
    logits, known = objective._past.read(torch.arange(SAMPLES), epoch=0)
    return {"uneven.logits": logits, "uneven.known": known.long()}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    early = SAF(nn.CrossEntropyLoss(), samples=SAMPLES, classes=2)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=RANKS)
    save_file(train(folder) | uneven(rank), folder / f"{rank}.safetensors")
    early.begin_epoch(0)
    batch = {"image": torch.zeros(1, 2), "label": torch.zeros(1).long(), "sample_id": torch.zeros(1).long()}
    try:
        early(nn.Identity(), batch)
    except ValueError as error:
        (folder / f"refusal-{rank}.txt").write_text(str(error), encoding="utf-8")
    dist.destroy_process_group()
    end_process(0)


if __name__ == "__main__":
    mp.spawn(work, args=(Path(sys.argv[1]),), nprocs=RANKS)
