"""Training in few bits: initial scales, resume, initial weights and prediction."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from tests.pipelines.run_files import MakeConfig, Refused, StateOf, job_of, last_of, rows_of
from uumamba.config import RunConfig
from uumamba.config.augmentation import build_augment
from uumamba.data.dataset import PatchDataset, batches
from uumamba.data.prepared import PreparedFolder
from uumamba.data.scan import read_image
from uumamba.pipelines import load_predictor
from uumamba.pipelines.build import build_trainer, calibrate_at_start
from uumamba.pipelines.models import load_initial_weights
from uumamba.pipelines.predict import predict
from uumamba.pipelines.run import run as run_all
from uumamba.pipelines.train import train
from uumamba.quantization import quantized_layers, quantizer_scales
from uumamba.runtime.errors import UsageError
from uumamba.runtime.stop import StoppedOnRequest
from uumamba.training import Trainer
from uumamba.training.checkpoint import save_checkpoint

TrainerOf = Callable[..., Trainer]
SAGM = "optim={name: SAGM, base: {name: AdamW, lr: 0.01, weight_decay: 0.01}}"
FOUR_BITS = "{weight_bits: 4, act_bits: 4, calibration_batches: 2, gaqat: {every: 2, threshold: 0.6}}"
SHORT = ("training.ema_decay=0.9", "training.validate_every=2")
UDIM = "domain_generalization={name: UDIM, perturbation: {name: style, radius: 0.2}, second_order: finite_difference}"
IDLE = {
    "start_step": "{weight_bits: 3, act_bits: null, start_step: 7}",
    "every": "{weight_bits: 3, act_bits: null, gaqat: {every: 50}}",
    "both": "{weight_bits: 3, act_bits: null, start_step: 4, gaqat: {every: 3}}",
}
"""Settings without effect in the six steps of the tiny run."""


@pytest.fixture(scope="module")
def four_bits(tiny_config: MakeConfig) -> MakeConfig:
    """``four_bits("seed=1")``: the tiny run in four bits with GAQAT."""
    return lambda *overrides: tiny_config(SAGM, f"quantization={FOUR_BITS}", *SHORT, *overrides)


@pytest.fixture(scope="module")
def start_at(tiny_config: MakeConfig) -> MakeConfig:
    """``start_at(4)``: tiny run of six steps, in three bits after four."""
    bits = "{{weight_bits: 3, act_bits: null, first_last_bits: null, start_step: {}}}"
    return lambda step, *overrides: tiny_config(f"quantization={bits.format(step)}", *SHORT, *overrides)


@pytest.fixture(scope="module")
def trainer_of(tiny_prepared: Path, tiny_config: MakeConfig) -> TrainerOf:
    """``trainer_of(config, run, init=None)``: the trainer of fold 0."""

    def build(config: RunConfig, run: Path | None = None, *, init: Path | None = None) -> Trainer:
        given = {"init": None if init is None else str(init), "run_dir": None if run is None else run / "fold_0"}
        job = replace(job_of(tiny_config(), tiny_prepared), config=config)  # also where it would be refused at a start
        folder = PreparedFolder(tiny_prepared)
        trainer = build_trainer(job, folder, observers=(), **given)
        calibrate_at_start(trainer, config, folder, job.training_ids)
        return trainer

    return build


@pytest.fixture(scope="module")
def quantized(
    four_bits: MakeConfig, trainer_of: TrainerOf, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Trainer]:
    """Run of fold 0 from the tiny run's weights, and its trainer."""
    run = tmp_path_factory.mktemp("quantized")
    trainer = trainer_of(four_bits(), run, init=tiny_run)
    trainer.fit()
    return run, trainer


@pytest.fixture(scope="module")
def waiting(start_at: MakeConfig, trainer_of: TrainerOf, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs three steps before and two steps after the start of quantization."""
    early, done = (tmp_path_factory.mktemp(name) for name in ("early", "done"))
    stop_after(1, trainer_of(start_at(4), early))
    trainer_of(start_at(4), done).fit()
    return early, done


def stop_after(steps: int, trainer: Trainer) -> None:
    augment, calls = trainer.prefetcher.augment, iter(range(1, 100))

    def augment_and_stop(batch: Any) -> Any:
        if next(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return augment(batch)

    trainer.prefetcher.augment = augment_and_stop
    with pytest.raises(StoppedOnRequest):
        trainer.fit()


def scales_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: scale.detach().clone() for name, scale in quantizer_scales(net).items()}


def steps_left(net: nn.Module) -> set[int | None]:
    left = [layer.weight.steps_left for layer in quantized_layers(net) if layer.weight is not None]
    return {None if each is None else int(each) for each in left}


def test_scales_start_from_the_initial_weights_and_from_the_first_batches(
    four_bits: MakeConfig, trainer_of: TrainerOf, tiny_prepared: Path, tiny_run: Path
) -> None:
    config, folder = four_bits(), PreparedFolder(tiny_prepared)
    trainer = trainer_of(config, init=tiny_run)
    weights, scales = last_of(tiny_run).ema, scales_of(trainer.net)
    for name, bits in (("encoder.stages.0.0.conv1", 8), ("encoder.stages.1.0.conv1", 4)):
        mean = weights[f"{name}.weight"].abs().mean()
        assert scales[f"{name}.weight"] == pytest.approx(float(2 * mean / (2 ** (bits - 1) - 1) ** 0.5))
    training = config.training
    dataset = PatchDataset(
        folder,
        job_of(config, folder).training_ids,
        patch_size=training.patch_size,
        batch_size=training.batch_size,
        batches_per_epoch=training.batches_per_epoch,
        foreground_fraction=training.foreground_fraction,
        seed=config.seed,
    )
    augment = build_augment(config.augment, patch_size=training.patch_size)
    images = torch.cat([augment(batch)["image"] for batch in islice(batches(dataset, 0), 2)])
    # The image has negative values, and the first layer 8 bits: levels -128 to 127.
    assert scales["encoder.stages.0.0.conv1.input"] == pytest.approx(float(2 * images.abs().mean() / 127**0.5))


def test_calibration_draws_no_random_numbers_and_leaves_no_gradients(
    four_bits: MakeConfig, trainer_of: TrainerOf
) -> None:
    trainer, drawn = trainer_of(four_bits()), torch.rand(3)
    plain = trainer_of(four_bits("quantization.act_bits=null"))
    assert torch.equal(drawn, torch.rand(3))
    assert all(param.grad is None for net in (trainer.net, plain.net) for param in net.parameters())


def test_a_run_learns_in_four_bits_and_its_log_has_the_frozen_fraction(quantized: tuple[Path, Trainer]) -> None:
    run, trainer = quantized
    for layer in quantized_layers(trainer.net):
        assert len(layer.layer.weight.unique()) <= 2**layer.weight.bits
    rows = rows_of(run)
    assert [set(row["gaqat"]) for row in rows] == [{"frozen_fraction", "disorder"}] * 2
    last = last_of(run).optimizer["numbers"]
    assert rows[-1]["gaqat"]["frozen_fraction"] == last["gaqat_frozen_fraction"]
    assert 0 < last["gaqat_frozen_fraction"] < 1, "a fraction that a resume could lose"


@pytest.mark.parametrize("steps", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_a_stopped_and_resumed_run_equals_one_that_never_stopped(
    four_bits: MakeConfig,
    quantized: tuple[Path, Trainer],
    trainer_of: TrainerOf,
    tiny_prepared: Path,
    tiny_run: Path,
    state_of: StateOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    stop_after(steps, trainer_of(four_bits(), tmp_path, init=tiny_run))
    monkeypatch.delattr("uumamba.pipelines.build.calibrate")  # scales come from the checkpoint
    train(four_bits(), data=tiny_prepared, out=tmp_path, resume=True)
    assert state_of(tmp_path) == state_of(quantized[0])


def test_a_stopped_run_with_udim_equals_one_that_never_stopped(
    four_bits: MakeConfig, trainer_of: TrainerOf, tiny_prepared: Path, state_of: StateOf, tmp_path: Path
) -> None:
    config = four_bits(UDIM, "training.epochs=1")
    trainer_of(config, tmp_path / "never stopped").fit()
    stop_after(2, trainer_of(config, tmp_path / "stopped"))
    train(config, data=tiny_prepared, out=tmp_path / "stopped", resume=True)
    assert state_of(tmp_path / "stopped") == state_of(tmp_path / "never stopped")


# Quantization that starts later.


@pytest.mark.parametrize("init", [None, 0, 1], ids=["from scratch", "from weights in full precision", "from quantized"])
def test_a_delayed_start_is_kept_by_a_resume_logged_and_warned_of(
    start_at: MakeConfig,
    waiting: tuple[Path, Path],
    trainer_of: TrainerOf,
    tiny_prepared: Path,
    state_of: StateOf,
    tmp_path: Path,
    init: int | None,
) -> None:
    source = None if init is None else waiting[init]
    config, finished, stopped = start_at(4), tmp_path / "finished", tmp_path / "stopped"
    if source is None:
        finished = waiting[1]
    else:
        trainer_of(config, finished, init=source).fit()
    assert [row.get("quantization") for row in rows_of(finished)] == [{"steps_left": 1}, None]
    stop_after(2, trainer_of(config, stopped, init=source))
    with (
        pytest.warns(UserWarning, match="predicts in full precision"),
        pytest.warns(UserWarning, match="has done 0 of 2"),
    ):
        load_predictor(stopped)
    train(config, data=tiny_prepared, out=stopped, init=None if source is None else str(source), resume=True)
    assert state_of(stopped) == state_of(finished)
    (net,) = load_predictor(stopped).nets  # without a warning, which would be an error
    assert all(len(layer.layer.weight.unique()) <= 2**3 for layer in quantized_layers(net))


@pytest.mark.parametrize("quantization", IDLE.values(), ids=IDLE)
def test_a_new_run_that_ends_before_quantization_starts_is_refused_before_its_start(
    tiny_config: MakeConfig, tiny_prepared: Path, tiny_raw: Path, tmp_path: Path, quantization: str
) -> None:
    config = tiny_config(SAGM, f"quantization={quantization}")
    for begin in (
        partial(train, data=tiny_prepared, fold="cv"),
        partial(train, data=tiny_prepared, resume=True),
        partial(run_all, raw=tiny_raw),
    ):
        with pytest.raises(UsageError, match="quantization"):
            begin(config, out=tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_a_started_run_without_effect_of_quantization_continues_and_predicts(
    tiny_config: MakeConfig, trainer_of: TrainerOf, tiny_prepared: Path, tmp_path: Path
) -> None:
    config = tiny_config(SAGM, f"quantization={IDLE['every']}", *SHORT)
    stop_after(1, trainer_of(config, tmp_path / "seed_0"))
    train(config, data=tiny_prepared, out=tmp_path, seeds=[0, 1], resume=True)
    assert last_of(tmp_path / "seed_0").progress["steps_done"] == 6
    assert len(load_predictor(tmp_path).nets) == 2, "new seeds are trained like the first"


# Prediction.


def test_prediction_uses_the_training_average_bit_for_bit(
    quantized: tuple[Path, Trainer], tiny_prepared: Path, tmp_path: Path
) -> None:
    run, trainer = quantized
    predictor = load_predictor(run)
    (net,) = predictor.nets
    image = torch.randn(2, 1, 48, 48)
    with torch.no_grad():
        assert torch.equal(net(image), trainer.average.module.eval()(image))
        assert not torch.equal(net(image), trainer.net.eval()(image)), "the average has other scales"
    assert scales_of(net) == scales_of(trainer.average.module)
    result = predict(run, [tiny_prepared], out=tmp_path, split="training", case_fold=0, progress=False)
    assert not result.failures
    case = PreparedFolder(tiny_prepared).manifest.by_id(result.written[0].name.removesuffix(".nii.gz"))
    predictor.nets = (trainer.average.module.eval(),)
    scan = read_image(case.image)
    label = predictor(scan.array, spacing_mm=scan.spacing_mm, affine=scan.affine).label
    assert np.array_equal(np.asarray(nib.load(result.written[0]).dataobj), label)


def test_folds_in_different_bits_are_not_averaged(
    quantized: tuple[Path, Trainer], tmp_path: Path, refused: Refused
) -> None:
    one = last_of(quantized[0])
    two = replace(one, config=json.loads(json.dumps(one.config)))
    two.config["run"]["quantization"]["first_last_bits"] = 4
    for fold, checkpoint in (("fold_0", one), ("fold_1", two)):
        (tmp_path / fold).mkdir()
        save_checkpoint(tmp_path / fold / "last.safetensors", checkpoint)
    with refused("MODEL", got=tmp_path / "fold_1" / "last.safetensors"):
        load_predictor(tmp_path)


# Initial weights.


def test_quantized_initial_weights_keep_their_scales_and_missing_heads_are_calibrated(
    four_bits: MakeConfig, quantized: tuple[Path, Trainer], trainer_of: TrainerOf, tmp_path: Path
) -> None:
    run, expected = quantized[0], scales_of(quantized[1].average.module)
    assert scales_of(trainer_of(four_bits("seed=5"), init=run).net) == expected
    checkpoint = last_of(run)
    kept = {name: value for name, value in checkpoint.ema.items() if "seg_layers.0." not in name}
    save_checkpoint(tmp_path / "one_head.safetensors", replace(checkpoint, ema=kept))
    with pytest.warns(UserWarning, match="the heads .* start fresh"):
        trainer = trainer_of(four_bits(), init=tmp_path / "one_head.safetensors")
    found, head = scales_of(trainer.net), "decoder.seg_layers.0"
    assert found[f"{head}.input"] > 0
    different = {name for name in found if not torch.equal(found[name], expected[name])}
    assert different == {f"{head}.weight", f"{head}.input"}


@pytest.mark.parametrize(
    "override",
    [
        "quantization.weight_bits=3",
        "quantization.act_bits=null",
        "quantization.overrides={'decoder.seg_layers.*': null}",
        "quantization=null",
    ],
)
def test_initial_weights_in_other_bits_are_refused(
    four_bits: MakeConfig, quantized: tuple[Path, Trainer], trainer_of: TrainerOf, override: str, refused: Refused
) -> None:
    with refused("--init"):
        trainer_of(four_bits(override), init=quantized[0])


@pytest.mark.parametrize("step", [0, 5])
def test_initial_weights_are_quantized_at_the_start_step_of_the_new_run(
    start_at: MakeConfig, waiting: tuple[Path, Path], trainer_of: TrainerOf, tmp_path: Path, step: int
) -> None:
    (early, done), always = waiting, tmp_path
    trainer_of(start_at(0, "training.epochs=1"), always).fit()
    weights = last_of(early).ema
    net = trainer_of(start_at(step), init=early).net  # counts as weights in full precision
    assert steps_left(net) == {step or None}
    for layer in quantized_layers(net):
        full = weights[f"{layer.name}.parametrizations.weight.original"]
        assert torch.equal(layer.full_weight, full)
        torch.testing.assert_close(layer.weight.scale.detach(), 2 * full.abs().mean() / 3**0.5)
    assert steps_left(trainer_of(start_at(step), init=always).net) == {step or None}
    (source,) = load_predictor(done).nets
    net = trainer_of(start_at(step), init=done).net  # keeps its scales
    assert steps_left(net) == {step or None}
    assert scales_of(net) == scales_of(source)


def test_weights_that_were_not_quantized_yet_start_a_run_of_other_bits_or_of_none(
    four_bits: MakeConfig, tiny_config: MakeConfig, waiting: tuple[Path, Path], trainer_of: TrainerOf
) -> None:
    name = "encoder.stages.1.0.conv1"
    full = last_of(waiting[0]).ema[f"{name}.parametrizations.weight.original"]
    assert torch.equal(trainer_of(tiny_config(), init=waiting[0]).net.get_submodule(name).weight, full)
    scales = scales_of(trainer_of(four_bits(), init=waiting[0]).net)
    assert float(scales[f"{name}.weight"]) == pytest.approx(float(2 * full.abs().mean() / 7**0.5))
    assert scales[f"{name}.input"] > 0


def test_heads_of_other_classes_start_with_random_weights_and_new_scales(
    four_bits: MakeConfig, quantized: tuple[Path, Trainer]
) -> None:
    config, (run, trainer) = four_bits(), quantized
    net = config.build_net(classes=7)
    with pytest.warns(UserWarning, match="the heads .* start fresh"):
        load_initial_weights(net, run, quantize=config.quantization.bind())
    scales, source = scales_of(net), scales_of(trainer.average.module)
    for layer in quantized_layers(net):
        name, is_head = f"{layer.name}.weight", "seg_layers" in layer.name
        mean = float(layer.full_weight.detach().abs().mean())
        assert (scales[name] == pytest.approx(2 * mean / layer.weight.levels[1] ** 0.5)) is is_head
        assert torch.equal(scales[name], source[name]) is not is_head
        if layer.input is not None:
            assert torch.equal(scales[f"{layer.name}.input"], source[f"{layer.name}.input"])
