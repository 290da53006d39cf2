"""A batch that does not fit into memory goes through in pieces, and the step is that of the whole batch."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.optim import (
    ASAM,
    GSAM,
    SAGM,
    SAM,
    TRAM,
    AdaptiveTrigger,
    FriendlySAM,
    LookSAM,
    OutputBiasForgetting,
    Plain,
    SharpnessAware,
    StaleSAM,
    engine,
)
from uumamba.runtime.memory_shortage import OutOfMemoryError, is_out_of_memory
from uumamba.runtime.seeds import generator_for
from uumamba.training import Trainer, read_checkpoint
from uumamba.training.out_of_memory import pieces_of

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
MEMBERS: dict[str, Callable[..., SharpnessAware]] = {
    "Plain": Plain,
    "SAM": partial(SAM, rho=0.3),
    "ASAM": ASAM,
    "GSAM": partial(GSAM, rho=0.3),
    "FriendlySAM": partial(FriendlySAM, rho=0.3),
    "LookSAM": partial(LookSAM, rho=0.3, k=2),
    "triggered": partial(LookSAM, rho=0.3, trigger=AdaptiveTrigger(total_steps=6)),
    "StaleSAM": partial(StaleSAM, rho=0.3),
    "SAGM": partial(SAGM, rho=0.3),
    "TRAM": TRAM,
    "noisy TRAM": partial(TRAM, trust="noise"),
}


class SmallMemory:
    """An objective that finds room for so many samples, and fails from the pass of a given number on."""

    def __init__(self, *, samples: int, from_pass: int = 0, error: type[Exception] = torch.cuda.OutOfMemoryError):
        self.samples, self.from_pass, self.error = samples, from_pass, error
        self.sizes: list[int] = []

    def __call__(self, net: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        self.sizes.append(len(batch["image"]))
        logits = net(batch["image"])
        loss = F.cross_entropy(logits, batch["label"])
        if len(batch["image"]) > self.samples and len(self.sizes) > self.from_pass:
            raise self.error("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return loss, (logits, batch["label"])


def batches(epoch: int, *, size: int) -> Iterator[dict[str, Tensor]]:
    for index in range(3):
        image = torch.randn(size, 4, generator=generator_for(epoch, index), dtype=torch.float64)
        yield {"image": image, "label": (image[:, 0] > 0).long() + (image[:, 1] > 0), "case_id": ["a"] * size}


def build(
    make: Callable[..., SharpnessAware], objective: Any, *, size: int = 4, epochs: int = 2, **how: Any
) -> Trainer:
    torch.manual_seed(0)
    middle = how.pop("middle", ())
    net = nn.Sequential(nn.Linear(4, 6), *middle, nn.Tanh(), nn.Linear(6, 3)).double()
    options: dict[str, Any] = {"epochs": epochs, "batches": partial(batches, size=size), "progress": False}
    return Trainer(net, objective, make(net.parameters(), SGD, net=net), **options | {"log": [].append} | how)


def weights(trainer: Trainer) -> list[Tensor]:
    return [weight.detach() for weight in trainer.net.parameters()]


ROOM = SmallMemory(samples=100)


@pytest.mark.parametrize(("size", "fits"), [(4, 2), (4, 1), (5, 3), (7, 2)])
@pytest.mark.parametrize("name", ["Plain", "SAM", "ASAM", "GSAM"])
def test_a_step_in_pieces_is_that_of_the_whole_batch(name: str, size: int, fits: int) -> None:
    whole = build(MEMBERS[name], SmallMemory(samples=size), size=size)
    pieces = build(MEMBERS[name], SmallMemory(samples=fits), size=size)
    for trainer in (whole, pieces):
        trainer.fit()
    assert max(pieces.objective.sizes[3:]) <= fits, "only the first step tried more"
    for one, other in zip(weights(whole), weights(pieces), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["FriendlySAM", "LookSAM", "triggered", "StaleSAM", "SAGM", "TRAM"])
def test_every_member_takes_the_step_of_the_whole_batch(name: str) -> None:
    whole, pieces = build(MEMBERS[name], SmallMemory(samples=4)), build(MEMBERS[name], SmallMemory(samples=1))
    for trainer in (whole, pieces):
        trainer.fit()
    for one, other in zip(weights(whole), weights(pieces), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_the_climb_of_another_loss_counts_samples_too() -> None:
    """With pieces of 2, 2 and 1 samples, where a mean over pieces would count the last one twice."""
    found = []
    for fits in (5, 2):
        trainer = build(partial(SAM, rho=0.5), SmallMemory(samples=fits), size=5, ascent=OutputBiasForgetting())
        trainer.fit()
        found.append(weights(trainer))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("failing_pass", range(4))
@pytest.mark.parametrize("name", ["SAM", "FriendlySAM", "triggered", "noisy TRAM"])
def test_a_repeated_step_starts_from_the_state_before_it_bit_for_bit(name: str, failing_pass: int) -> None:
    """Weights, batch norm's statistics, what the rule remembers, dropout's numbers: as if it had been known before."""

    def shaky() -> dict[str, Any]:
        return {"middle": (nn.BatchNorm1d(6), nn.Dropout(0.3))}

    failed_at: list[int] = []
    failed = build(
        MEMBERS[name],
        SmallMemory(samples=2, from_pass=failing_pass),
        log=lambda sentence: failed_at.append(failed.state.progress.steps_done) if "Memory" in sentence else None,
        **shaky(),
    )
    failed.fit()

    def foresee(batch: dict[str, Any]) -> dict[str, Any]:
        if known.state.progress.steps_done == failed_at[0]:
            known.state.progress.samples_at_once = 2
        return batch

    known = build(MEMBERS[name], SmallMemory(samples=100), augment=foresee, **shaky())
    known.fit()
    states = [trainer.net.state_dict() | flat_memory(trainer.optimizer) for trainer in (failed, known)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    assert failed.optimizer.numbers == known.optimizer.numbers


def flat_memory(optimizer: SharpnessAware) -> dict[str, Tensor]:
    state = optimizer.state_dict()
    rows = {"memory": state["state"], "base": state["base"]["state"]}
    return {
        f"{kind}/{index}/{name}": value
        for kind, entries in rows.items()
        for index, values in entries.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def test_it_is_said_once_a_halving_and_remembered_in_the_checkpoint(tmp_path: Path) -> None:
    said: list[str] = []
    build(SAM, SmallMemory(samples=1), epochs=1, run_dir=tmp_path, log=said.append).fit()
    memory = [sentence for sentence in said if "Memory" in sentence]
    assert [sentence.partition(". ")[0] for sentence in memory] == [
        "Memory ran out with 4 samples at once",
        "Memory ran out with 2 samples at once",
    ]
    assert read_checkpoint(tmp_path / "last.safetensors").progress["samples_at_once"] == 1
    resumed = build(SAM, SmallMemory(samples=1), run_dir=tmp_path, log=said.append)
    resumed.fit(resume=True)
    assert set(resumed.objective.sizes) == {1}, "no batch was tried again as a whole"


def test_a_checkpoint_from_before_pieces_were_known_is_resumed(tmp_path: Path) -> None:
    trainer = build(SAM, ROOM, epochs=1, run_dir=tmp_path)
    trainer.fit()
    state = trainer.state.checkpoint(None)
    state.progress.pop("samples_at_once")
    other = build(SAM, ROOM)
    other.state.restore(state)
    assert other.state.progress.samples_at_once is None


def test_samples_at_once_bounds_the_pieces_from_the_start() -> None:
    trainer = build(SAM, SmallMemory(samples=2), size=5, epochs=1, samples_at_once=2)
    trainer.fit()
    assert trainer.objective.sizes[:6] == [2, 2, 1, 2, 2, 1]
    assert trainer.state.progress.samples_at_once is None, "it did not run out"
    with pytest.raises(ValueError, match="samples_at_once must be at least 1, got 0"):
        build(SAM, ROOM, samples_at_once=0)


def test_a_single_sample_that_does_not_fit_ends_the_run_with_the_cure() -> None:
    with pytest.raises(
        OutOfMemoryError, match=r"single sample of shape \(4,\) at a time \(CUDA out of memory.*take a smaller patch"
    ):
        build(SAM, SmallMemory(samples=0)).fit()


def test_memory_that_runs_out_in_the_update_itself_is_not_tried_again() -> None:
    class Greedy(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            super().step()
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    trainer = build(lambda params, base, net: SAM(params, partial(Greedy, lr=0.1), net=net), ROOM)
    with pytest.raises(OutOfMemoryError, match="while the optimizer changed the weights"):
        trainer.fit()
    assert trainer.state.progress.samples_at_once is None


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        build(SAM, lambda net, batch: net(batch["image"][:, :2])).fit()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
            True,
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_all_that_is_as_long_as_the_batch_is_divided_and_nothing_else() -> None:
    batch = {"image": torch.arange(10).view(5, 2), "case_id": list("abcde"), "weights": torch.ones(3), "epoch": 7}
    pieces = pieces_of(batch, 5, at_once=3)
    assert [piece["case_id"] for piece, _ in pieces] == [["a", "b", "c"], ["d", "e"]]
    assert torch.equal(torch.cat([piece["image"] for piece, _ in pieces]), batch["image"])
    assert all(piece["weights"] is batch["weights"] and piece["epoch"] == 7 for piece, _ in pieces)


def test_a_gradient_that_was_unscaled_when_memory_ran_out_is_scaled_and_unscaled_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, failures = engine.clip_grads_with_norm_, [torch.OutOfMemoryError("CUDA out of memory.")]

    def clip_without_room(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        clip(*arguments)

    def fitted() -> Trainer:
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        trainer = build(partial(SAM, rho=0.3, scaler=scaler, max_grad_norm=0.5), ROOM)
        trainer.fit()
        return trainer

    whole = fitted()
    monkeypatch.setattr(engine, "clip_grads_with_norm_", clip_without_room)
    failed = fitted()
    assert failed.state.progress.samples_at_once == 2
    assert failed.optimizer.scaler.get_scale() == whole.optimizer.scaler.get_scale()
    for one, other in zip(weights(whole), weights(failed), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.gpu
def test_a_real_shortage_on_a_device_halves_the_batch() -> None:
    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(2e9 / total)
    try:
        net = nn.Sequential(nn.Linear(1000, 50_000), nn.ReLU(), nn.Linear(50_000, 2)).to(device)
        batch = {"image": torch.randn(4096, 1000), "label": torch.zeros(4096, dtype=torch.int64)}
        trainer = Trainer(
            net,
            lambda net, batch: F.cross_entropy(net(batch["image"]), batch["label"]),
            Plain(net.parameters(), partial(torch.optim.SGD, lr=0.1)),
            epochs=1,
            batches=lambda epoch: [batch],
            device=device,
            log=[].append,
        )
        trainer.fit()
        assert trainer.state.progress.samples_at_once in (2048, 1024, 512)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


RANK = """
import sys
from functools import partial
import torch
from torch import distributed, nn
from uumamba.optim import SAM
from uumamba.training import Trainer

rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
net = nn.parallel.DistributedDataParallel(nn.Linear(4, 2))

def objective(net, batch):
    if rank == 0:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
    return net(batch["image"]).square().mean()

optimizer = SAM(net.parameters(), partial(torch.optim.SGD, lr=0.1), net=net)
Trainer(net, objective, optimizer, epochs=1, batches=lambda epoch: [{"image": torch.ones(4, 4)}]).fit()
"""


@pytest.mark.slow
def test_one_of_several_ranks_does_not_repeat_a_step_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "meet")], stderr=subprocess.PIPE, encoding="utf-8")
        for rank in range(2)
    ]
    _, said = ranks[0].communicate(timeout=120)
    ranks[1].kill()
    ranks[1].communicate()
    assert ranks[0].returncode == 1
    assert "Memory ran out with 4 samples at a time (CUDA out of memory.)" in said
    assert "--set training.samples_at_once=2, which leaves the step that of the whole batch" in said
