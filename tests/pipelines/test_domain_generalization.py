"""UDIM over a whole training by configuration: it learns, resumes, and its control is another run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uumamba.config import RunConfig
from uumamba.domain_generalization import UDIM
from uumamba.pipelines.train import train
from uumamba.training import RunLog, read_checkpoint

UDIM_KEYS = (
    "domain_generalization={name: UDIM, lambda1: 10, lambda2: 0.1, warmup_fraction: 0.5, voxels_a_class: 64,"
    " second_order: finite_difference, perturbation: {name: style, radius: 0.3}}",
    "training.epochs=4",
    "training.save_every_minutes=0",
)
STEPS = 12
Train = Callable[..., Path]


class PulledPlugError(Exception):
    """The process dies here."""


@pytest.fixture(scope="module")
def trained(
    tiny_prepared: Path, tiny_config: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory
) -> Train:
    """``trained("optim.rho=0.1", ...)``: the folder of a tiny run with UDIM in its second half."""
    known: dict[tuple[str, ...], Path] = {}

    def run(*overrides: str, out: Path | None = None, resume: bool = False) -> Path:
        if out is None and overrides in known:
            return known[overrides]
        folder = tmp_path_factory.mktemp("run") if out is None else out
        train(tiny_config(*UDIM_KEYS, *overrides), data=tiny_prepared, out=folder, resume=resume)
        return known.setdefault(overrides, folder) if out is None else folder

    return run


def kill_at(step: int, trained: Train, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a run in ``out`` whose process died before this step of UDIM."""
    at_weights = UDIM.at_weights

    def die(self: UDIM, *arguments: Any, **options: Any) -> Any:
        if self.steps == step:
            raise PulledPlugError
        return at_weights(self, *arguments, **options)

    with monkeypatch.context() as plug:
        plug.setattr(UDIM, "at_weights", die)
        with pytest.raises(PulledPlugError):
            trained(out=out)


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in RunLog(run / "fold_0" / "metrics.jsonl").rows()]


def told_by(run: Path) -> list[Any]:
    return [row.get("udim") for row in RunLog(run / "fold_0" / "metrics.jsonl").rows()]


def test_a_run_with_udim_learns_and_counts_its_steps(trained: Train) -> None:
    run = trained()
    assert losses(run)[-1] < losses(run)[0]
    assert read_checkpoint(run / "fold_0" / "last.safetensors").method["steps"] == STEPS


def test_the_warm_up_is_sam_bit_for_bit_and_what_follows_is_not(trained: Train) -> None:
    """The first epoch of UDIM's is the third, whose loss shows it from its second step on."""
    ours, sam = losses(trained()), losses(trained("domain_generalization=null"))
    assert ours[:2] == sam[:2]
    assert ours[2] != sam[2]


def test_the_random_control_is_another_run_of_the_same_warm_up(trained: Train) -> None:
    ours, control = losses(trained()), losses(trained("domain_generalization.direction=random"))
    assert ours[:2] == control[:2]
    assert ours[2] != control[2]


@pytest.mark.parametrize("step", [3, 8], ids=["in the warm-up", "after it"])
def test_killed_and_resumed_it_equals_a_run_that_never_stopped(
    trained: Train,
    step: int,
    state_of: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kill_at(step, trained, tmp_path, monkeypatch)
    assert read_checkpoint(tmp_path / "fold_0" / "last.safetensors").method["steps"] == step
    trained(out=tmp_path, resume=True)
    assert state_of(tmp_path) == state_of(trained())
    assert losses(tmp_path) == losses(trained())


def test_each_epoch_s_row_tells_what_udim_added_and_a_resumed_one_the_same(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = told_by(trained())
    assert told[:2] == [None, None], "the warm-up adds nothing"
    for each in told[2:]:
        assert each["gradient_norm"] > 0
        assert each["penalty"] == pytest.approx(10 * each["variance_gap"] + 0.1 * each["gradient_norm"])
    kill_at(8, trained, tmp_path, monkeypatch)
    trained(out=tmp_path, resume=True)
    assert told_by(tmp_path) == told


def test_udim_few_bits_and_slow_cases_go_together(trained: Train) -> None:
    run = trained(
        "optim={name: SAGM, base: {name: AdamW, lr: 0.01, weight_decay: 0.01}}",
        "quantization={weight_bits: 4, act_bits: 4, calibration_batches: 2, gaqat: {every: 2}}",
        "training.useful={most_epochs: 2, views: 1}",
    )
    assert losses(run)[-1] < losses(run)[0]
    checkpoint = read_checkpoint(run / "fold_0" / "last.safetensors")
    assert checkpoint.method["steps"] == STEPS
    assert all(float(value) > 0 for name, value in checkpoint.net.items() if name.endswith("input_quantizer.scale"))
