"""A method's penalty in each step, in micro-batches and after a resume."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.training.tiny_run import assert_same_weights, without_domain
from uumamba.domain_generalization import UDIM, InputPerturbation
from uumamba.optim import ASAM, SAGM, SAM, Plain
from uumamba.runtime.seeds import generator_for
from uumamba.training import Trainer, read_checkpoint, save_checkpoint

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
STEPS, SIZE = 3, 5


class SmallLogits:
    """Method whose penalty is a mean over samples; it records its calls."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.steps = net, 0
        self.calls: list[tuple[int, int, Any]] = []
        self.dtypes: list[torch.dtype] = []

    def at_weights(self, image: Tensor, label: Tensor, *, domains: Any) -> Callable[[], Tensor]:
        self.calls.append((self.steps, len(image), domains))
        self.steps += 1
        return partial(self._scalar, image, label)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]

    def _scalar(self, image: Tensor, label: Tensor) -> Tensor:
        logits = self.net(image)
        self.dtypes.append(logits.dtype)
        return (logits.square().sum(1) * (1 + label)).mean()


def stateless(net: nn.Module) -> Any:
    return SimpleNamespace(at_weights=lambda image, label, *, domains: lambda: net(image).square().sum(1).mean())


def udim_of(net: nn.Module, **options: Any) -> UDIM:
    defaults = {"lambda1": 20.0, "lambda2": 2.0, "rho": 0.0, "warmup_steps": 1}
    return UDIM(net, F.cross_entropy, InputPerturbation(0.3), **defaults | options)


def batches(epoch: int, *, dtype: torch.dtype = torch.float64) -> Iterator[dict[str, Any]]:
    for index in range(STEPS):
        image = torch.randn(SIZE, 4, generator=generator_for(epoch, index)).to(dtype)
        yield {"image": image, "label": (image[:, 0] > 0).long(), "domain": list("ABABC")}


def train(
    make: Any = SAM, method: Any = SmallLogits, *, room: int = 100, dtype: torch.dtype = torch.float64, **options: Any
) -> Trainer:
    """Train with memory for ``room`` samples at once."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)

    def objective(net: nn.Module, batch: dict[str, Any]) -> Tensor:
        if len(batch["image"]) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return F.cross_entropy(net(batch["image"]), batch["label"])

    defaults: dict[str, Any] = {"epochs": 1, "batches": partial(batches, dtype=dtype), "log": [].append}
    defaults["method"] = None if method is None else method(net)
    trainer = Trainer(net, objective, make(net.parameters(), SGD, net=net), **defaults | options)
    trainer.fit(resume="run_dir" in options)
    return trainer


def method_of(trainer: Trainer) -> Any:
    assert trainer.state.method is not None
    return trainer.state.method.method


@pytest.mark.parametrize("make", [Plain, SAM, ASAM, SAGM])
def test_a_training_step_is_the_optimizers_step_with_the_methods_scalar(make: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    method, optimizer = SmallLogits(net), make(net.parameters(), SGD, net=net)
    for batch in batches(0):
        added = method.at_weights(batch["image"], batch["label"], domains=batch["domain"])
        optimizer.step(lambda batch=batch: F.cross_entropy(net(batch["image"]), batch["label"]), at_weights=added)
    assert_same_weights(train(make).net, net)
    assert not any(map(torch.equal, train(make, None).net.parameters(), net.parameters()))


def test_a_method_gets_the_augmented_batch_once_per_step_with_or_without_domains() -> None:
    def cut(batch: dict[str, Any]) -> dict[str, Any]:
        return batch | {"image": batch["image"][:2], "label": batch["label"][:2]}

    assert method_of(train(augment=cut)).calls == [(step, 2, list("ABABC")) for step in range(STEPS)]
    assert method_of(train(augment=without_domain)).calls == [(step, SIZE, None) for step in range(STEPS)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_penalty_is_computed_in_the_precision_of_the_run(precision: Any) -> None:
    trainer = train(precision=precision, dtype=torch.float32)
    assert set(method_of(trainer).dtypes) == {getattr(torch, precision)}


@pytest.mark.parametrize(
    ("make", "method", "room"),
    [
        *((make, SmallLogits, 2) for make in (Plain, SAM, ASAM, SAGM)),
        *((SAM, SmallLogits, room) for room in (1, 3)),
        (SAM, stateless, 2),
    ],
)
def test_a_mean_over_samples_is_the_same_in_micro_batches(make: Any, method: Any, room: int) -> None:
    parts = train(make, method, room=room)
    assert parts.state.progress.samples_at_once is not None
    assert_same_weights(parts.net, train(make, method).net, 1e-9)


def test_a_repeated_step_and_its_micro_batches_count_as_one_step() -> None:
    method = method_of(train(room=2))
    assert method.steps == STEPS
    assert method.calls[:2] == [(0, 5, list("ABABC")), (0, 3, list("ABA"))], "both failed"
    parts = [(2, ["A", "B"]), (2, ["A", "B"]), (1, ["C"])]
    assert method.calls[-6:] == [(step, size, names) for step in (1, 2) for size, names in parts]


@pytest.mark.parametrize("direction", ["ascent", "random"])
def test_udim_is_the_same_after_a_repeated_step(direction: Any) -> None:
    method = partial(udim_of, direction=direction)
    failed = train(method=method, room=3)
    assert failed.state.progress.samples_at_once == 3
    assert_same_weights(failed.net, train(method=method, samples_at_once=3).net)


def test_a_checkpoint_holds_the_state_of_a_method_with_state(tmp_path: Path) -> None:
    train(method=stateless, run_dir=tmp_path / "stateless")
    assert read_checkpoint(tmp_path / "stateless" / "last.safetensors").method == {}
    train(run_dir=tmp_path / "run")
    kept = read_checkpoint(tmp_path / "run" / "last.safetensors")
    assert kept.method == {"steps": STEPS}
    assert method_of(train(run_dir=tmp_path / "run", epochs=2)).calls[0][0] == STEPS
    older = train()
    method_of(older).steps = 0
    older.state.restore(replace(kept, method={}))
    assert method_of(older).steps == 0, "a method added to an older run starts at step 0"


def test_a_checkpoint_of_a_version_without_methods_is_read(tmp_path: Path) -> None:
    path, state = tmp_path / "old.safetensors", train().state.checkpoint(None)
    del vars(state)["method"], state.progress["samples_at_once"]
    save_checkpoint(path, state)
    assert b"method" not in path.read_bytes()
    assert read_checkpoint(path).method == {}
    newer = train()
    newer.state.restore(read_checkpoint(path))
    assert newer.state.progress.samples_at_once is None
