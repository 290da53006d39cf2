"""Every optimizer, objective and method resumes bit for bit."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.optim_members import OPTIMIZERS
from tests.training.tiny_run import bits
from uumamba.domain_generalization import UDIM, InputPerturbation
from uumamba.optim import MESA, SAF, SAGM, SAM, TRAM, AdaptiveTrigger, OutputBiasForgetting, Plain, SharpnessAware
from uumamba.runtime.seeds import generator_for, seed_everything
from uumamba.training import Checkpoint, SupervisedObjective, Trainer, poly, read_checkpoint, save_checkpoint

EPOCHS, BATCHES, SIZE = 2, 4, 4
BOUNDARIES = (1, BATCHES, BATCHES + 2)  # in the first epoch, between the two, and in the second
MEMBERS = OPTIMIZERS | {
    "GSAM by rate": partial(OPTIMIZERS["GSAM"], rho_min=0.01, lr_max=0.05),
    "LookSAM triggered": partial(OPTIMIZERS["LookSAM"], trigger=AdaptiveTrigger(total_steps=EPOCHS * BATCHES)),
}
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAMW = partial(torch.optim.AdamW, lr=0.01)


def mesa(net: nn.Module) -> nn.Module:
    return MESA(nn.CrossEntropyLoss(), net, decay=0.8, start_step=1)


def saf(net: nn.Module, **options: Any) -> nn.Module:
    return SAF(nn.CrossEntropyLoss(), samples=BATCHES * SIZE, classes=3, lag=1, start_epoch=1, **options)


def udim(net: nn.Module, *, direction: Any) -> UDIM:
    """Build UDIM; its warm-up ends between the first two boundaries."""
    return UDIM(net, nn.CrossEntropyLoss(), InputPerturbation(0.3), lambda1=20.0, warmup_steps=2, direction=direction)


def shuffled(epoch: int) -> Iterator[dict[str, Tensor]]:
    image = torch.randn(BATCHES * SIZE, 5, generator=generator_for("image"))
    for ids in torch.randperm(len(image)).split(SIZE):
        label = (image[ids, 0] > 0).long() + (image[ids, 1] > 0)
        yield {"image": image[ids], "label": label, "sample_id": ids}


def build(
    run_dir: Path,
    *,
    make: Callable[..., SharpnessAware] = SAM,
    objective: Any = None,
    base: Any = SGD,
    method: Callable[[nn.Module], Any] | None = None,
    **options: Any,
) -> Trainer:
    seed_everything(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 3))
    optimizer = make(net.parameters(), base, net=net)
    return Trainer(
        net,
        SupervisedObjective(nn.CrossEntropyLoss(), outputs=True) if objective is None else objective(net),
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


def assert_resumes_at_three_boundaries(make_trainer: Callable[..., Trainer], folder: Path) -> Checkpoint:
    """Resume a run from three boundaries, and compare the last bits."""
    whole = make_trainer(folder / "whole", save_every_minutes=0)
    assert whole.folder is not None
    save = whole.folder.save

    def save_at_boundaries(checkpoint: Checkpoint, *, best: bool) -> None:
        steps = checkpoint.progress["steps_done"]
        if steps in BOUNDARIES:
            (folder / str(steps)).mkdir(exist_ok=True)
            save_checkpoint(folder / str(steps) / "last.safetensors", checkpoint)
        if checkpoint.progress["epochs_done"] == EPOCHS:
            save(checkpoint)

    whole.folder.save = save_at_boundaries  # type: ignore[method-assign]
    whole.fit()
    for steps in BOUNDARIES:
        torch.manual_seed(123)
        make_trainer(folder / str(steps)).fit(resume=True)
        assert bits(folder / str(steps) / "last.safetensors") == bits(folder / "whole" / "last.safetensors"), steps
    return read_checkpoint(folder / "whole" / "last.safetensors")


@pytest.mark.parametrize(
    ("name", "base"), [*((name, SGD) for name in MEMBERS), *((name, ADAMW) for name in ("SAM", "LookSAM", "MSAM"))]
)
def test_every_optimizer_resumes_bit_for_bit(name: str, base: Any, tmp_path: Path) -> None:
    assert_resumes_at_three_boundaries(partial(build, make=MEMBERS[name], base=base), tmp_path)


@pytest.mark.parametrize("make", [SAM, TRAM])
def test_output_bias_forgetting_resumes_bit_for_bit(make: Any, tmp_path: Path) -> None:
    assert_resumes_at_three_boundaries(partial(build, make=make, ascent=OutputBiasForgetting()), tmp_path)


def test_mesa_resumes_bit_for_bit_with_its_teacher(tmp_path: Path) -> None:
    kept = assert_resumes_at_three_boundaries(partial(build, objective=mesa), tmp_path)
    assert kept.objective["teacher.n_averaged"] == EPOCHS * BATCHES
    assert not torch.equal(kept.objective["teacher.module.0.weight"], kept.net["0.weight"])


def test_saf_resumes_bit_for_bit_with_a_table_in_memory_or_mapped(tmp_path: Path) -> None:
    kept = assert_resumes_at_three_boundaries(partial(build, objective=saf), tmp_path)
    state = kept.objective["_extra_state"]
    assert state["epoch"] == EPOCHS - 1
    assert (state["marks"] == torch.tensor([EPOCHS - 1, EPOCHS])).all(), "the last two epochs of every sample"
    mapped = partial(build, objective=partial(saf, table=tmp_path / "saf.npy"))
    assert_resumes_at_three_boundaries(mapped, tmp_path / "mapped")
    found, expected = (bits(folder / "whole" / "last.safetensors") for folder in (tmp_path / "mapped", tmp_path))
    assert found == expected


@pytest.mark.parametrize(("make", "direction"), [(Plain, "random"), (SAM, "ascent"), (SAGM, "random")])
def test_udim_resumes_bit_for_bit_also_within_its_warm_up(make: Any, direction: str, tmp_path: Path) -> None:
    method = partial(udim, direction=direction)
    found = assert_resumes_at_three_boundaries(partial(build, make=make, method=method), tmp_path)
    assert found.method["steps"] == EPOCHS * BATCHES
    build(tmp_path / "without", make=make).fit()
    without = read_checkpoint(tmp_path / "without" / "last.safetensors")
    assert not torch.equal(found.net["0.weight"], without.net["0.weight"]), "UDIM has changed the run"
