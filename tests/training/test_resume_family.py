"""Killed between any two steps and resumed, every optimizer of the family goes on with the same bits."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uumamba.domain_generalization import UDIM, InputPerturbation
from uumamba.optim import (
    ASAM,
    GSAM,
    MESA,
    MSAM,
    SAF,
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
)
from uumamba.runtime.seeds import generator_for, seed_everything
from uumamba.training import SupervisedObjective, Trainer, poly, read_checkpoint

EPOCHS, BATCHES, SIZE = 2, 4, 4
Bits = Callable[[Path], dict[str, Any]]
Make = Callable[..., SharpnessAware]

OPTIMIZERS: dict[str, Make] = {
    "Plain": Plain,
    "SAM": SAM,
    "ASAM": ASAM,
    "GSAM": GSAM,
    "GSAM by rate": partial(GSAM, rho_min=0.01, lr_max=0.05),
    "FriendlySAM": FriendlySAM,
    "LookSAM": partial(LookSAM, k=3),
    "LookSAM triggered": partial(LookSAM, trigger=AdaptiveTrigger(total_steps=EPOCHS * BATCHES)),
    "MSAM": MSAM,
    "StaleSAM": StaleSAM,
    "SAGM": SAGM,
    **{f"TRAM {trust}": partial(TRAM, trust=trust) for trust in ("previous", "initial", "noise", "fisher")},
}
OBJECTIVES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "MESA": lambda net: MESA(nn.CrossEntropyLoss(), net, decay=0.8, start_step=1),
    "SAF": lambda net: SAF(nn.CrossEntropyLoss(), samples=BATCHES * SIZE, classes=3, lag=1, start_epoch=1),
}
BASES = {
    "SGD": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "AdamW": partial(torch.optim.AdamW, lr=0.01),
}


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred runs would spend most of their time on drawing."""
    monkeypatch.setattr("uumamba.training.trainer.draw_progress", lambda rows, path: None)


class PulledPlugError(Exception):
    """The process dies here."""


def shuffled(epoch: int) -> Iterator[dict[str, Tensor]]:
    image = torch.randn(BATCHES * SIZE, 5, generator=generator_for("image"))
    for ids in torch.randperm(len(image)).split(SIZE):
        label = (image[ids, 0] > 0).long() + (image[ids, 1] > 0)
        yield {"image": image[ids], "label": label, "sample_id": ids}


def build(
    run_dir: Path,
    make: Make,
    objective: Any = None,
    base: Any = BASES["SGD"],
    method: Callable[[nn.Module], Any] | None = None,
    **options: Any,
) -> Trainer:
    seed_everything(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))
    asked = SupervisedObjective(nn.CrossEntropyLoss(), outputs=True) if objective is None else objective(net)
    optimizer = make(net.parameters(), base, net=net)
    return Trainer(
        net,
        asked,
        optimizer,
        epochs=EPOCHS,
        batches=shuffled,
        scheduler=poly(optimizer, total_steps=EPOCHS * BATCHES),
        ema_decay=0.9,
        method=None if method is None else method(net),
        run_dir=run_dir,
        progress=False,
        log=[].append,
        **options,
    )


def die_after(trainer: Trainer, steps: int) -> None:
    def augment(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if trainer.state.progress.steps_done == steps:
            raise PulledPlugError
        return batch

    trainer.augment = augment
    with pytest.raises(PulledPlugError):
        trainer.fit()


def assert_resumes_at_three_boundaries(make_trainer: Callable[..., Trainer], folder: Path, bits: Bits) -> None:
    """In the first epoch, between the two, and in the second."""
    make_trainer(folder / "whole").fit()
    for steps in (1, BATCHES, BATCHES + 2):
        died = make_trainer(folder / str(steps), save_every_minutes=0)
        die_after(died, steps)
        assert read_checkpoint(folder / str(steps) / "last.safetensors").progress["steps_done"] == steps
        torch.manual_seed(123)
        make_trainer(folder / str(steps)).fit(resume=True)
        assert bits(folder / str(steps) / "last.safetensors") == bits(folder / "whole" / "last.safetensors"), steps


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name: str, base: str, tmp_path: Path, bits: Bits) -> None:
    make = partial(build, make=OPTIMIZERS[name], base=BASES[base])
    assert_resumes_at_three_boundaries(make, tmp_path, bits)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_with_a_memory(name: str, tmp_path: Path, bits: Bits) -> None:
    make = partial(build, make=SAM, objective=OBJECTIVES[name])
    assert_resumes_at_three_boundaries(make, tmp_path, bits)


@pytest.mark.parametrize("make", [SAM, TRAM], ids=["SAM", "TRAM"])
def test_output_bias_forgetting(make: Make, tmp_path: Path, bits: Bits) -> None:
    trainer = partial(build, make=make, ascent=OutputBiasForgetting())
    assert_resumes_at_three_boundaries(trainer, tmp_path, bits)


@pytest.mark.parametrize("direction", ["ascent", "random"])
@pytest.mark.parametrize("make", [Plain, SAM, ASAM, SAGM])
def test_udim_also_from_within_its_warm_up(make: Make, direction: Any, tmp_path: Path, bits: Bits) -> None:
    """The first of the three boundaries is in the warm-up of two steps, the others after its head was found."""

    def udim(net: nn.Module) -> UDIM:
        options: dict[str, Any] = {"lambda1": 20.0, "warmup_steps": 2, "direction": direction}
        return UDIM(net, nn.CrossEntropyLoss(), InputPerturbation(0.3), **options)

    trainer = partial(build, make=make, method=udim)
    assert_resumes_at_three_boundaries(trainer, tmp_path, bits)
    found = read_checkpoint(tmp_path / "whole" / "last.safetensors")
    assert found.method["steps"] == EPOCHS * BATCHES
    trainer(tmp_path / "without", method=None).fit()
    without = read_checkpoint(tmp_path / "without" / "last.safetensors")
    assert not torch.equal(found.net["0.weight"], without.net["0.weight"]), "it has changed the run"


def test_the_list_names_every_optimizer_that_the_package_has() -> None:
    import uumamba.optim

    exported = [getattr(uumamba.optim, name) for name in uumamba.optim.__all__]
    members = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, SharpnessAware)}
    made = {make.func if isinstance(make, partial) else make for make in OPTIMIZERS.values()}
    assert members - {SharpnessAware} == made
