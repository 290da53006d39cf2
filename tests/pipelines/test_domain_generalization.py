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
    "training.save_every_minutes=0",
    "training.validate_every=2",
)
STEPS = 6
"""Of two epochs, the first of which is the warm-up."""
Train = Callable[..., Path]


class PulledPlugError(Exception):
    """Death of the process."""


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


def column(run: Path, name: str) -> list[Any]:
    return [row.get(name) for row in RunLog(run / "fold_0" / "metrics.jsonl").rows()]


def test_a_run_with_udim_counts_its_steps_and_logs_what_it_adds(trained: Train) -> None:
    run = trained()
    assert read_checkpoint(run / "fold_0" / "last.safetensors").method["steps"] == STEPS
    warm_up, added = column(run, "udim")
    assert warm_up is None
    assert added["gradient_norm"] > 0
    assert added["penalty"] == pytest.approx(10 * added["variance_gap"] + 0.1 * added["gradient_norm"])


@pytest.mark.parametrize("override", ["domain_generalization=null", "domain_generalization.direction=random"])
def test_the_warm_up_is_sam_bit_for_bit_and_the_rest_is_not(trained: Train, override: str) -> None:
    """The same holds for the random control."""
    ours, other = column(trained(), "loss"), column(trained(override), "loss")
    assert ours[0] == other[0]
    assert ours[1] != other[1]


@pytest.mark.parametrize("step", [2, 4], ids=["in the warm-up", "after it"])
def test_killed_and_resumed_it_equals_a_run_that_never_stopped(
    trained: Train,
    step: int,
    state_of: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_weights = UDIM.at_weights

    def die(self: UDIM, *arguments: Any, **options: Any) -> Any:
        if self.steps == step:
            raise PulledPlugError
        return at_weights(self, *arguments, **options)

    with monkeypatch.context() as plug:
        plug.setattr(UDIM, "at_weights", die)
        with pytest.raises(PulledPlugError):
            trained(out=tmp_path)
    assert read_checkpoint(tmp_path / "fold_0" / "last.safetensors").method["steps"] == step
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
    checkpoint = read_checkpoint(run / "fold_0" / "last.safetensors")
    assert checkpoint.method["steps"] == STEPS
    assert all(float(value) > 0 for name, value in checkpoint.net.items() if name.endswith("input_quantizer.scale"))
