"""What a method adds to a step: asked once a step, piece by piece where a batch does not fit, and kept with the run."""

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uumamba.domain_generalization import UDIM, InputPerturbation
from uumamba.optim import ASAM, SAGM, SAM, Plain, SharpnessAware
from uumamba.runtime.seeds import generator_for
from uumamba.training import Checkpoint, Trainer, read_checkpoint, save_checkpoint
from uumamba.training.method_step import MethodStep
from uumamba.training.out_of_memory import pieces_of

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
STEPS, SIZE = 3, 5
Make = Callable[..., SharpnessAware]


class SmallLogits:
    """A mean over samples, of the logits' squares; it counts its steps and keeps what it was asked for."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.steps = net, 0
        self.asked: list[tuple[int, int, Any]] = []
        self.dtypes: list[torch.dtype] = []

    def at_weights(self, image: Tensor, label: Tensor, *, domains: Any) -> Callable[[], Tensor]:
        self.asked.append((self.steps, len(image), domains))
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


class Room:
    """An objective with room for so many samples."""

    def __init__(self, samples: int = 100) -> None:
        self.samples = samples

    def __call__(self, net: nn.Module, batch: dict[str, Any]) -> Tensor:
        if len(batch["image"]) > self.samples:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return F.cross_entropy(net(batch["image"]), batch["label"])


def batches(epoch: int) -> Iterator[dict[str, Any]]:
    for index in range(STEPS):
        image = torch.randn(SIZE, 4, generator=generator_for(epoch, index))
        yield {"image": image, "label": (image[:, 0] > 0).long(), "domain": list("ABABC")}


def build(make: Make = SAM, method: Callable[[nn.Module], Any] | None = SmallLogits, **how: Any) -> Trainer:
    torch.manual_seed(0)
    dtype = how.pop("dtype", torch.float64)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)

    def converted(epoch: int) -> Iterator[dict[str, Any]]:
        return (batch | {"image": batch["image"].to(dtype)} for batch in batches(epoch))

    options: dict[str, Any] = {"epochs": 1, "batches": converted, "progress": False, "log": [].append}
    options["method"] = None if method is None else method(net)
    room = Room(how.pop("room", 100))
    return Trainer(net, room, make(net.parameters(), SGD, net=net), **options | how)


def weights(trainer: Trainer) -> list[Tensor]:
    return [weight.detach() for weight in trainer.net.parameters()]


def method_of(trainer: Trainer) -> Any:
    assert trainer.state.method is not None
    return trainer.state.method.method


def assert_same_bits(one: Trainer, other: Trainer) -> None:
    assert all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.mark.parametrize("make", [Plain, SAM, ASAM, SAGM])
def test_the_trainer_s_step_is_the_optimizer_s_with_the_method_s_scalar(make: Any) -> None:
    trainer, by_hand = build(make), build(make, None)
    trainer.fit()
    method, net = SmallLogits(by_hand.net), by_hand.net
    for batch in by_hand.batches(0):
        added = method.at_weights(batch["image"], batch["label"], domains=batch["domain"])
        by_hand.optimizer.step(lambda batch=batch: Room()(net, batch), at_weights=added)
    assert_same_bits(trainer, by_hand)
    without = build(make, None)
    without.fit()
    assert not torch.equal(weights(without)[0], weights(trainer)[0])


def test_a_method_is_asked_once_a_step_for_the_augmented_batch() -> None:
    def cut(batch: dict[str, Any]) -> dict[str, Any]:
        return batch | {"image": batch["image"][:2], "label": batch["label"][:2]}

    trainer = build(augment=cut)
    trainer.fit()
    assert method_of(trainer).asked == [(step, 2, list("ABABC")) for step in range(STEPS)]


def test_a_batch_without_domains_is_given_as_such() -> None:
    def strip(batch: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in batch.items() if key != "domain"}

    trainer = build(augment=strip)
    trainer.fit()
    assert [domains for _, _, domains in method_of(trainer).asked] == [None] * STEPS


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_scalar_is_computed_in_the_run_s_precision(precision: Any) -> None:
    trainer = build(precision=precision, dtype=torch.float32)
    trainer.fit()
    assert set(method_of(trainer).dtypes) == {getattr(torch, precision)}


@pytest.mark.parametrize("fits", [1, 2, 3])
@pytest.mark.parametrize("make", [Plain, SAM, ASAM, SAGM])
def test_in_pieces_a_mean_over_samples_is_that_of_the_whole_batch(make: Any, fits: int) -> None:
    whole, pieces = build(make), build(make, room=fits)
    for trainer in (whole, pieces):
        trainer.fit()
    assert pieces.state.progress.samples_at_once is not None
    for one, other in zip(weights(whole), weights(pieces), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_step_that_is_repeated_counts_once_and_so_do_its_pieces() -> None:
    trainer = build(room=2)
    trainer.fit()
    method = method_of(trainer)
    assert method.steps == STEPS
    failed, repeated = method.asked[0], method.asked[1:]
    assert failed == (0, 5, list("ABABC"))
    pieces = [(2, ["A", "B"]), (2, ["A", "B"]), (1, ["C"])]
    assert repeated[0] == (0, 3, list("ABA")), "halves were tried before, and did not fit"
    assert method.asked[-6:] == [(step, size, names) for step in (1, 2) for size, names in pieces]


def test_a_step_that_a_compiler_fails_in_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(net: nn.Module) -> Callable[..., Any]:
        def fail(image: Tensor) -> Tensor:
            raise TypeError("no compiler")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    compiled, plain = build(compiles=True), build()
    for trainer in (compiled, plain):
        trainer.fit()
    assert method_of(compiled).steps == STEPS
    assert len(method_of(compiled).asked) == STEPS + 1
    assert_same_bits(compiled, plain)


def udim_of(net: nn.Module, **options: Any) -> UDIM:
    defaults = {"lambda1": 20.0, "lambda2": 2.0, "rho": 0.0, "warmup_steps": 1}
    return UDIM(net, F.cross_entropy, InputPerturbation(0.3), **defaults | options)


def test_udim_adds_the_mean_of_its_pieces_weighted_by_their_samples() -> None:
    net = nn.Linear(4, 3).double()
    udim, batch = udim_of(net, warmup_steps=0), next(batches(0))
    batch["image"] = batch["image"].double()
    pieces = pieces_of(batch, SIZE, at_once=3)
    found = MethodStep(udim).of(pieces)
    assert found is not None
    expected = [
        size / 5 * (20 * terms["variance_gap"] + 2 * terms["gradient_norm"])
        for piece, size in pieces
        for terms in [udim_of(net).terms(piece["image"], piece["label"], domains=piece["domain"], step=0)]
    ]
    for scalar, value in zip(found, expected, strict=True):
        torch.testing.assert_close(scalar(), value)
    assert udim.steps == 1


def test_pieces_of_a_step_in_the_warm_up_add_nothing() -> None:
    udim = udim_of(nn.Linear(4, 3), warmup_steps=1)
    pieces = [(batch, SIZE) for batch in batches(0)]
    assert MethodStep(udim).of(pieces) is None
    assert udim.steps == 1
    assert len(MethodStep(udim).of(pieces) or ()) == len(pieces)


@pytest.mark.parametrize("direction", ["ascent", "random"])
def test_udim_goes_on_from_a_repeated_step_as_if_memory_had_been_known_to_be_short(direction: Any) -> None:
    method = partial(udim_of, direction=direction)
    failed, known = build(method=method, room=3), build(method=method, samples_at_once=3)
    for trainer in (failed, known):
        trainer.fit()
    assert failed.state.progress.samples_at_once == 3
    assert_same_bits(failed, known)


def test_a_method_without_a_state_is_asked_and_kept_as_nothing(tmp_path: Path) -> None:
    class Stateless:
        def __init__(self, net: nn.Module) -> None:
            self.net = net

        def at_weights(self, image: Tensor, label: Tensor, *, domains: Any) -> Callable[[], Tensor]:
            return lambda: self.net(image).square().sum(1).mean()

    whole, pieces = build(method=Stateless, run_dir=tmp_path), build(method=Stateless, room=2)
    for trainer in (whole, pieces):
        trainer.fit()
    for one, other in zip(weights(whole), weights(pieces), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert read_checkpoint(tmp_path / "last.safetensors").method == {}


def test_a_checkpoint_holds_the_method_and_one_from_before_there_were_any_is_read(tmp_path: Path) -> None:
    build(run_dir=tmp_path).fit()
    path = tmp_path / "last.safetensors"
    assert read_checkpoint(path).method == {"steps": STEPS}
    resumed = build(run_dir=tmp_path, epochs=2)
    resumed.fit(resume=True)
    assert method_of(resumed).asked[0][0] == STEPS
    older = build()
    older.state.restore(replace(read_checkpoint(path), method={}))
    assert method_of(older).steps == 0, "a method that is forced upon an older run begins its own steps there"


def test_a_file_that_lacks_the_key_is_a_run_without_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "old.safetensors"
    with monkeypatch.context() as older:
        known = [each for each in fields(Checkpoint) if each.name != "method"]
        older.setattr("uumamba.training.checkpoint.fields", lambda kind: known)
        save_checkpoint(path, build().state.checkpoint(None))
    assert b"method" not in path.read_bytes()
    assert read_checkpoint(path).method == {}
