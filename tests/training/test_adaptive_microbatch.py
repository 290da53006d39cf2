"""Batches that exceed memory are split without changing the step."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.optim_members import OPTIMIZERS
from tests.training.tiny_run import assert_same_weights
from uumamba.optim import SAM, OutputBiasForgetting, Plain, SharpnessAware, engine
from uumamba.runtime.memory_shortage import OutOfMemoryError
from uumamba.runtime.ranks import Alone
from uumamba.runtime.seeds import generator_for
from uumamba.training import Trainer, read_checkpoint
from uumamba.training.adaptive_microbatch import split_batch

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
MEMBERS = {name: partial(make, rho=0.3) for name, make in OPTIMIZERS.items() if name != "Plain"} | {"Plain": Plain}


class SmallMemory:
    """Objective that fails for more than ``samples`` samples after ``from_pass`` passes."""

    def __init__(self, samples: int = 100, *, from_pass: int = 0) -> None:
        self.samples, self.from_pass = samples, from_pass
        self.sizes: list[int] = []

    def __call__(self, net: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        self.sizes.append(len(batch["image"]))
        logits = net(batch["image"])
        if len(batch["image"]) > self.samples and len(self.sizes) > self.from_pass:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return F.cross_entropy(logits, batch["label"]), (logits, batch["label"])


def batches(epoch: int, *, size: int) -> Iterator[dict[str, Tensor]]:
    for index in range(3):
        image = torch.randn(size, 4, generator=generator_for(epoch, index), dtype=torch.float64)
        yield {"image": image, "label": (image[:, 0] > 0).long() + (image[:, 1] > 0), "case_id": ["a"] * size}


def build(
    make: Callable[..., SharpnessAware] = SAM,
    samples: int = 100,
    *,
    objective: Any = None,
    size: int = 4,
    middle: tuple[nn.Module, ...] = (),
    **options: Any,
) -> Trainer:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), *middle, nn.Tanh(), nn.Linear(6, 3)).double()
    defaults: dict[str, Any] = {"epochs": 2, "batches": partial(batches, size=size), "log": [].append}
    optimizer = make(net.parameters(), SGD, net=net)
    return Trainer(net, objective or SmallMemory(samples), optimizer, **defaults | options)


def fitted(*arguments: Any, **options: Any) -> Trainer:
    trainer = build(*arguments, **options)
    trainer.fit()
    return trainer


@pytest.mark.parametrize(
    ("name", "size", "fits"),
    [
        *((name, size, fits) for name in ("Plain", "SAM", "ASAM", "GSAM") for size, fits in ((4, 1), (5, 3), (7, 2))),
        *(
            (name, 4, 1)
            for name in ("FriendlySAM", "LookSAM", "LookSAM triggered", "StaleSAM", "SAGM", "TRAM previous")
        ),
    ],
)
def test_a_step_in_micro_batches_is_that_of_the_whole_batch(name: str, size: int, fits: int) -> None:
    parts = fitted(MEMBERS[name], fits, size=size)
    assert max(parts.objective.sizes[4:]) <= fits, "only the first step tried more"
    assert_same_weights(parts.net, fitted(MEMBERS[name], size, size=size).net, 1e-9)


def test_an_ascent_loss_is_weighted_by_the_samples_of_a_micro_batch() -> None:
    # Parts of 2, 2 and 1 samples: an unweighted mean over parts would count the last sample twice.
    whole, parts = (fitted(partial(SAM, rho=0.5), fits, size=5, ascent=OutputBiasForgetting()) for fits in (5, 2))
    assert_same_weights(parts.net, whole.net, 1e-9)


@pytest.mark.parametrize("failing_pass", range(4))
@pytest.mark.parametrize("name", ["SAM", "FriendlySAM", "LookSAM triggered", "TRAM noise"])
def test_a_repeated_step_starts_from_the_state_before_it_bit_for_bit(name: str, failing_pass: int) -> None:
    # The reference run uses micro-batches of 2 from the failed step on, without a failure.
    middle = (nn.BatchNorm1d(6), nn.Dropout(0.3)), (nn.BatchNorm1d(6), nn.Dropout(0.3))
    failed_at: list[int] = []

    def note(sentence: str) -> None:
        if "Memory" in sentence:
            failed_at.append(failed.state.progress.steps_done)

    failed = build(MEMBERS[name], objective=SmallMemory(2, from_pass=failing_pass), log=note, middle=middle[0])
    failed.fit()

    def foresee(batch: dict[str, Any]) -> dict[str, Any]:
        if known.state.progress.steps_done == failed_at[0]:
            known.state.progress.samples_at_once = 2
        return batch

    known = build(MEMBERS[name], augment=foresee, middle=middle[1])
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


def test_each_halving_is_reported_once_and_stored_in_the_checkpoint(tmp_path: Path) -> None:
    said: list[str] = []
    fitted(samples=1, epochs=1, run_dir=tmp_path, log=said.append)
    memory = [sentence.partition(". ")[0] for sentence in said if "Memory" in sentence]
    assert memory == [f"Memory ran out with {count} samples at once" for count in (4, 2)]
    assert read_checkpoint(tmp_path / "last.safetensors").progress["samples_at_once"] == 1
    resumed = build(samples=1, run_dir=tmp_path)
    resumed.fit(resume=True)
    assert set(resumed.objective.sizes) == {1}, "no whole batch is tried again"


def test_samples_at_once_bounds_the_micro_batches_from_the_start() -> None:
    trainer = fitted(samples=2, size=5, epochs=1, samples_at_once=2)
    assert trainer.objective.sizes[:6] == [2, 2, 1, 2, 2, 1]
    assert trainer.state.progress.samples_at_once is None, "memory did not run out"


class Greedy(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        super().step()
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


def test_a_single_sample_or_an_update_that_does_not_fit_ends_the_run() -> None:
    with pytest.raises(OutOfMemoryError, match=r"single sample of shape \(4,\) .*use a smaller patch"):
        build(samples=0).fit()
    trainer = build(lambda params, base, net: SAM(params, partial(Greedy, lr=0.1), net=net))
    with pytest.raises(OutOfMemoryError, match="while the optimizer changed the weights"):
        trainer.fit()
    assert trainer.state.progress.samples_at_once is None


def test_one_of_several_ranks_does_not_repeat_a_step() -> None:
    ranks = Alone()
    ranks.count = 2
    with pytest.raises(OutOfMemoryError, match=r"4 samples per micro-batch .*--set training.samples_at_once=2\."):
        build(samples=2, ranks=ranks).fit()


def test_errors_other_than_a_lack_of_memory_are_raised_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        build(objective=lambda net, batch: net(batch["image"][:, :2])).fit()


def test_values_as_long_as_the_batch_are_split_and_others_are_not() -> None:
    batch = {"image": torch.arange(10).view(5, 2), "case_id": list("abcde"), "weights": torch.ones(3), "epoch": 7}
    parts = split_batch(batch, 5, at_once=3)
    assert [part["case_id"] for part, _ in parts] == [["a", "b", "c"], ["d", "e"]]
    assert torch.equal(torch.cat([part["image"] for part, _ in parts]), batch["image"])
    assert all(part["weights"] is batch["weights"] and part["epoch"] == 7 for part, _ in parts)


def test_a_step_that_fails_after_unscaling_is_repeated_with_unscaled_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip, failures = engine.clip_grads_with_norm_, [torch.OutOfMemoryError("CUDA out of memory.")]

    def clip_and_fail_once(*arguments: Any) -> None:
        if failures:
            raise failures.pop()
        clip(*arguments)

    def scaled() -> Trainer:
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        return fitted(partial(SAM, rho=0.3, scaler=scaler, max_grad_norm=0.5))

    whole = scaled()
    monkeypatch.setattr(engine, "clip_grads_with_norm_", clip_and_fail_once)
    failed = scaled()
    assert failed.state.progress.samples_at_once == 2
    assert failed.optimizer.scaler.get_scale() == whole.optimizer.scaler.get_scale()
    assert_same_weights(failed.net, whole.net, 1e-9)


@pytest.mark.gpu
def test_a_lack_of_memory_on_a_gpu_halves_the_micro_batches() -> None:
    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(2e9 / total)
    try:
        net = nn.Sequential(nn.Linear(1000, 50_000), nn.ReLU(), nn.Linear(50_000, 2)).to(device)
        batch = {"image": torch.randn(4096, 1000), "label": torch.zeros(4096, dtype=torch.int64)}
        optimizer = Plain(net.parameters(), partial(torch.optim.SGD, lr=0.1))
        options: dict[str, Any] = {"epochs": 1, "batches": lambda epoch: [batch], "device": device, "log": [].append}
        trainer = Trainer(net, SmallMemory(10**6), optimizer, **options)
        trainer.fit()
        assert trainer.state.progress.samples_at_once in (2048, 1024, 512)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
