"""UDIM in a complete training: log, warm-up, resume and controls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.run_files import MakeConfig, StateOf, last_of, rows_of
from uumamba.domain_generalization import UDIM
from uumamba.pipelines.train import train

UDIM_KEYS = (
    "domain_generalization={name: UDIM, lambda1: 10, lambda2: 0.1, warmup_fraction: 0.5, voxels_a_class: 64,"
    " second_order: finite_difference, perturbation: {name: style, radius: 0.3}}",
    "training.save_every_minutes=0",
    "training.validate_every=2",
)
STEPS = 6
"""Number of steps in two epochs; the first epoch is the warm-up."""
Train = Callable[..., Path]


class KilledError(Exception):
    """Stand-in for a kill of the process."""


@pytest.fixture(scope="module")
def trained(tiny_prepared: Path, tiny_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """``trained("optim.rho=0.1", ...)``: run folder with UDIM after a warm-up."""
    known: dict[tuple[str, ...], Path] = {}

    def run(*overrides: str, out: Path | None = None, resume: bool = False) -> Path:
        if out is None and overrides in known:
            return known[overrides]
        folder = tmp_path_factory.mktemp("run") if out is None else out
        train(tiny_config(*UDIM_KEYS, *overrides), data=tiny_prepared, out=folder, resume=resume)
        return known.setdefault(overrides, folder) if out is None else folder

    return run


def column(run: Path, name: str) -> list[Any]:
    return [row.get(name) for row in rows_of(run)]


def test_a_run_with_udim_counts_its_steps_and_logs_what_it_adds(trained: Train) -> None:
    run = trained()
    assert last_of(run).method["steps"] == STEPS
    warm_up, added = column(run, "udim")
    assert warm_up is None
    assert added["gradient_norm"] > 0
    assert added["penalty"] == pytest.approx(10 * added["variance_gap"] + 0.1 * added["gradient_norm"])


@pytest.mark.parametrize("override", ["domain_generalization=null", "domain_generalization.direction=random"])
def test_only_the_warm_up_equals_sam_and_the_random_control_bit_for_bit(trained: Train, override: str) -> None:
    udim, control = column(trained(), "loss"), column(trained(override), "loss")
    assert udim[0] == control[0]
    assert udim[1] != control[1]


@pytest.mark.parametrize("step", [2, 4], ids=["in the warm-up", "after it"])
def test_a_killed_and_resumed_run_equals_one_that_never_stopped(
    trained: Train, step: int, state_of: StateOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_weights = UDIM.at_weights

    def end_at_step(self: UDIM, *arguments: Any, **options: Any) -> Any:
        if self.steps == step:
            raise KilledError
        return at_weights(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(UDIM, "at_weights", end_at_step)
        with pytest.raises(KilledError):
            trained(out=tmp_path)
    assert last_of(tmp_path).method["steps"] == step
    trained(out=tmp_path, resume=True)
    assert state_of(tmp_path) == state_of(trained())
    for name in ("loss", "udim"):
        assert column(tmp_path, name) == column(trained(), name)


def test_udim_few_bits_and_slow_cases_work_together(trained: Train) -> None:
    run = trained(
        "optim={name: SAGM, base: {name: AdamW, lr: 0.01, weight_decay: 0.01}}",
        "quantization={weight_bits: 4, act_bits: 4, calibration_batches: 2, gaqat: {every: 2}}",
        "training.useful={most_epochs: 2, views: 1}",
    )
    assert column(run, "loss")[-1] < column(run, "loss")[0]
    checkpoint = last_of(run)
    assert checkpoint.method["steps"] == STEPS
    assert all(float(value) > 0 for name, value in checkpoint.net.items() if name.endswith("input_quantizer.scale"))
