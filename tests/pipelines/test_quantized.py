"""Training in few bits, from a configuration to label maps: where scales start, what a resume keeps, what predicts."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from uumamba.config import RunConfig
from uumamba.data.dataset import PatchDataset, batches
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines import load_predictor
from uumamba.pipelines.build import build_net, build_trainer
from uumamba.pipelines.evaluate import evaluate_folder
from uumamba.pipelines.initial_weights import load_initial_weights
from uumamba.pipelines.predict import predict
from uumamba.pipelines.run import run as run_all
from uumamba.pipelines.split import split_cases
from uumamba.pipelines.train import train
from uumamba.quantization import quantized_layers, quantizer_scales
from uumamba.runtime.errors import UsageError
from uumamba.runtime.stop import StoppedOnRequest
from uumamba.training import Trainer
from uumamba.training.checkpoint import read_checkpoint, save_checkpoint
from uumamba.training.run_log import RunLog

MakeConfig = Callable[..., RunConfig]
SAGM = "optim={name: SAGM, base: {name: AdamW, lr: 0.01, weight_decay: 0.01}}"
FOUR_BITS = "{weight_bits: 4, act_bits: 4, calibration_batches: 2, gaqat: {every: 2, threshold: 0.6}}"
SHORT = ("training.ema_decay=0.9", "training.validate_every=2")
UDIM = "domain_generalization={name: UDIM, perturbation: {name: style, radius: 0.2}, second_order: finite_difference}"
WAITING = "{weight_bits: 3, act_bits: null, per_channel: true, start_step: 2}"


@pytest.fixture(scope="module")
def four_bits(tiny_config: MakeConfig) -> MakeConfig:
    """``four_bits("seed=1")``: the tiny run in four bits by GAQAT."""
    return lambda *overrides: tiny_config(SAGM, f"quantization={FOUR_BITS}", *SHORT, *overrides)


@pytest.fixture(scope="module")
def quantized(
    four_bits: MakeConfig, tiny_prepared: Path, tiny_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Trainer]:
    """A run of fold 0 from the tiny run's weights, and the trainer as it ended."""
    run = tmp_path_factory.mktemp("quantized")
    trainer = trainer_of(four_bits(), tiny_prepared, run, init=tiny_run)
    trainer.fit()
    return run, trainer


def trainer_of(config: RunConfig, prepared: Path, run: Path | None, *, init: Path | None = None) -> Trainer:
    given = {"init": None if init is None else str(init), "run_dir": None if run is None else run / "fold_0"}
    return build_trainer(config, PreparedFolder(prepared), fold="0", progress=False, log=[].append, **given)


def scales_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: scale.detach().clone() for name, scale in quantizer_scales(net).items()}


def test_scales_start_from_the_initial_weights_and_from_the_first_batches(
    four_bits: MakeConfig, tiny_prepared: Path, tiny_run: Path
) -> None:
    config, folder = four_bits(), PreparedFolder(tiny_prepared)
    trainer = trainer_of(config, tiny_prepared, None, init=tiny_run)
    weights = read_checkpoint(tiny_run / "fold_0" / "last.safetensors").ema
    scales = scales_of(trainer.net)
    for name, bits in (("encoder.stages.0.0.conv1", 8), ("encoder.stages.1.0.conv1", 4)):
        mean = weights[f"{name}.weight"].abs().mean()
        assert scales[f"{name}.weight"] == pytest.approx(float(2 * mean / (2 ** (bits - 1) - 1) ** 0.5))

    training = config.training
    dataset = PatchDataset(
        folder,
        split_cases(folder.manifest, "0")[0],
        patch_size=training.patch_size,
        batch_size=training.batch_size,
        batches_per_epoch=training.batches_per_epoch,
        foreground_fraction=training.foreground_fraction,
        seed=config.seed,
    )
    augment = config.augment.build(patch_size=training.patch_size)
    images = torch.cat([augment(batch)["image"] for batch in islice(batches(dataset, 0), 2)])
    # the image has negative values, and the first layer 8 bits: levels -128 to 127
    assert scales["encoder.stages.0.0.conv1.input"] == pytest.approx(float(2 * images.abs().mean() / 127**0.5))


def test_a_run_learns_in_four_bits_and_its_log_tells_what_is_frozen(quantized: tuple[Path, Trainer]) -> None:
    run, trainer = quantized
    for layer in quantized_layers(trainer.net):
        assert len(layer.layer.weight.unique()) <= 2**layer.weight.bits
    rows = RunLog(run / "fold_0" / "metrics.jsonl").rows()
    assert [set(row["gaqat"]) for row in rows] == [{"frozen_fraction", "disorder"}] * 2
    last = read_checkpoint(run / "fold_0" / "last.safetensors").optimizer["numbers"]
    assert rows[-1]["gaqat"]["frozen_fraction"] == last["gaqat_frozen_fraction"]
    assert 0 < last["gaqat_frozen_fraction"] < 1, "else a resume would not show that it is kept"


@pytest.mark.parametrize("steps", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_stopped_and_resumed_it_equals_a_run_that_never_stopped(
    four_bits: MakeConfig,
    quantized: tuple[Path, Trainer],
    tiny_prepared: Path,
    tiny_run: Path,
    state_of: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
) -> None:
    stop_after(steps, trainer_of(four_bits(), tiny_prepared, tmp_path, init=tiny_run))
    monkeypatch.delattr("uumamba.pipelines.quantized.calibrate")  # scales come from the checkpoint
    train(four_bits(), data=tiny_prepared, out=tmp_path, resume=True)
    assert state_of(tmp_path) == state_of(quantized[0])


def test_beside_udim_it_is_resumed_too(
    four_bits: MakeConfig, tiny_prepared: Path, state_of: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    config = four_bits(UDIM)
    trainer_of(config, tiny_prepared, tmp_path / "whole").fit()
    stop_after(3, trainer_of(config, tiny_prepared, tmp_path / "stopped"))
    train(config, data=tiny_prepared, out=tmp_path / "stopped", resume=True)
    assert state_of(tmp_path / "stopped") == state_of(tmp_path / "whole")


def test_weights_that_wait_go_on_waiting_after_a_resume(
    tiny_config: MakeConfig, tiny_prepared: Path, state_of: Callable[[Path], dict[str, Any]], tmp_path: Path
) -> None:
    config = tiny_config(f"quantization={WAITING}", *SHORT, "training.epochs=1")
    whole = trainer_of(config, tiny_prepared, tmp_path / "whole")
    whole.fit()
    stop_after(1, trainer_of(config, tiny_prepared, tmp_path / "stopped"))
    waits = read_checkpoint(tmp_path / "stopped" / "fold_0" / "last.safetensors").net
    assert {int(value) for name, value in waits.items() if name.endswith("steps_left")} == {1}
    train(config, data=tiny_prepared, out=tmp_path / "stopped", resume=True)
    assert state_of(tmp_path / "stopped") == state_of(tmp_path / "whole")
    weight = whole.net.encoder.stages[1][0].conv1.weight
    assert max(len(channel.unique()) for channel in weight) <= 2**3


def test_predicting_with_weights_that_wait_is_warned_of_until_they_are_rounded(
    tiny_config: MakeConfig, tiny_prepared: Path, tmp_path: Path
) -> None:
    config = tiny_config(f"quantization={WAITING}", *SHORT, "training.epochs=1")
    stop_after(1, trainer_of(config, tiny_prepared, tmp_path))
    waits = r"last\.safetensors predicts in full precision, as its weights wait for step 2 of training to be rounded; "
    with pytest.warns(UserWarning, match=waits), pytest.warns(UserWarning, match="has done 0 of 1 epochs"):
        load_predictor(tmp_path)
    train(config, data=tiny_prepared, out=tmp_path, resume=True)
    load_predictor(tmp_path)  # where a warning is an error


def test_the_log_tells_how_long_weights_still_wait(
    tiny_config: MakeConfig, tiny_prepared: Path, tmp_path: Path
) -> None:
    config = tiny_config(f"quantization={WAITING.replace('start_step: 2', 'start_step: 4')}", *SHORT)
    train(config, data=tiny_prepared, out=tmp_path)
    rows = RunLog(tmp_path / "fold_0" / "metrics.jsonl").rows()
    assert [row.get("quantization") for row in rows] == [{"steps_left": 1}, None]


IDLE = {
    "start_step is 7": "{weight_bits: 3, act_bits: null, start_step: 7}",
    "gaqat.every is 50": "{weight_bits: 3, act_bits: null, gaqat: {every: 50}}",
    "start_step is 4, gaqat.every 3": "{weight_bits: 3, act_bits: null, start_step: 4, gaqat: {every: 3}}",
}


@pytest.mark.parametrize(("sentence", "quantization"), IDLE.items())
@pytest.mark.parametrize("resume", [False, True])
def test_a_training_that_would_never_reach_what_it_asks_for_is_refused_before_it_begins(
    tiny_config: MakeConfig, tiny_prepared: Path, tmp_path: Path, sentence: str, quantization: str, resume: bool
) -> None:
    config = tiny_config(SAGM, f"quantization={quantization}")
    with pytest.raises(UsageError, match=rf"^quantization: {sentence} and .* 6 steps, so .* or train longer\.$"):
        train(config, data=tiny_prepared, out=tmp_path / "run", fold="cv", resume=resume)
    assert not (tmp_path / "run").exists()


def test_the_whole_way_is_refused_before_scans_are_prepared_for_such_a_training(
    tiny_config: MakeConfig, tiny_raw: Path, tmp_path: Path
) -> None:
    config = tiny_config(SAGM, f"quantization={IDLE['gaqat.every is 50']}")
    with pytest.raises(UsageError, match=r"^quantization: gaqat\.every is 50 and "):
        run_all(config, raw=tiny_raw, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_such_a_training_that_an_earlier_program_began_goes_on_and_predicts(
    tiny_config: MakeConfig,
    tiny_prepared: Path,
    state_of: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
) -> None:
    config = tiny_config(SAGM, f"quantization={IDLE['gaqat.every is 50']}", *SHORT)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    trainer_of(config, tiny_prepared, whole).fit()
    stop_after(1, trainer_of(config, tiny_prepared, stopped / "seed_0"))
    with pytest.warns(UserWarning, match="has done 0 of 2 epochs"):
        load_predictor(stopped)
    train(config, data=tiny_prepared, out=stopped, seeds=[0, 1], resume=True)
    assert state_of(stopped / "seed_0") == state_of(whole)
    assert len(load_predictor(stopped).nets) == 2, "seeds that were not begun are trained as the first was"


def stop_after(steps: int, trainer: Trainer) -> None:
    augment, calls = trainer.augment, iter(range(1, 100))

    def augment_and_stop(batch: Any) -> Any:
        if next(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return augment(batch)

    trainer.augment = augment_and_stop
    with pytest.raises(StoppedOnRequest):
        trainer.fit()


def test_what_is_predicted_with_is_bit_for_bit_the_trainings_average(quantized: tuple[Path, Trainer]) -> None:
    run, trainer = quantized
    (net,) = load_predictor(run).nets
    image = torch.randn(2, 1, 48, 48)
    with torch.no_grad():
        assert torch.equal(net(image), trainer.average.module.eval()(image))
        assert not torch.equal(net(image), trainer.net.eval()(image)), "the average has scales of its own"
    assert scales_of(net) == scales_of(trainer.average.module)


def test_it_predicts_and_is_scored_as_any_other_run(
    quantized: tuple[Path, Trainer], tiny_prepared: Path, tmp_path: Path
) -> None:
    run, trainer = quantized
    result = predict(run, [tiny_prepared], out=tmp_path / "labels", split="training", case_fold=0, progress=False)
    assert not result.failures
    scores = evaluate_folder(tmp_path / "labels", tiny_prepared, tmp_path, split="training", fold=0)
    assert {row.case_id for row in scores.rows} == {path.name.removesuffix(".nii.gz") for path in result.written}
    case = PreparedFolder(tiny_prepared).manifest.by_id(result.written[0].name.removesuffix(".nii.gz"))
    predictor = load_predictor(run)
    predictor.nets = (trainer.average.module.eval(),)
    scan = nib.load(case.image)
    label = predictor(
        np.asarray(scan.dataobj, np.float32), spacing_mm=scan.header.get_zooms()[:3], affine=scan.affine
    ).label
    assert np.array_equal(np.asarray(nib.load(result.written[0]).dataobj), label)


def test_scales_that_come_with_quantised_weights_are_kept(
    four_bits: MakeConfig, quantized: tuple[Path, Trainer], tiny_prepared: Path
) -> None:
    run, trainer = quantized
    again = trainer_of(four_bits("seed=5"), tiny_prepared, None, init=run)
    assert scales_of(again.net) == scales_of(trainer.average.module)


def test_a_head_that_quantised_weights_lack_is_calibrated_and_all_others_keep_their_scales(
    four_bits: MakeConfig, quantized: tuple[Path, Trainer], tiny_prepared: Path, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(quantized[0] / "fold_0" / "last.safetensors")
    kept = {name: value for name, value in checkpoint.ema.items() if "seg_layers.0." not in name}
    save_checkpoint(tmp_path / "one_head.safetensors", replace(checkpoint, ema=kept))
    with pytest.warns(UserWarning, match="the heads .* start fresh"):
        trainer = trainer_of(four_bits(), tiny_prepared, None, init=tmp_path / "one_head.safetensors")
    found, before = scales_of(trainer.net), scales_of(quantized[1].average.module)
    assert found["decoder.seg_layers.0.input"] > 0
    assert {name for name in found if not torch.equal(found[name], before[name])} == {
        "decoder.seg_layers.0.weight",
        "decoder.seg_layers.0.input",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["quantization.weight_bits=3"],
            r"is in other bits than this run \(.* has 3 bits and was given the state of 4",
        ),
        (["quantization.act_bits=null"], r"weights differ .*\.input_quantizer\..*same net and quantization settings"),
        (["quantization.overrides={'decoder.seg_layers.*': null}"], r"first decoder\.seg_layers.*same net and quantiz"),
        (["quantization=null"], "is a quantised network and this run's is not; give this run the same quantization"),
    ],
)
def test_initial_weights_in_other_bits_are_refused(
    four_bits: MakeConfig, quantized: tuple[Path, Trainer], tiny_prepared: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        trainer_of(four_bits(*overrides), tiny_prepared, None, init=quantized[0])


@pytest.fixture(scope="module")
def waiting_for(tiny_config: MakeConfig) -> Callable[[int], RunConfig]:
    """``waiting_for(4)``: the tiny run of six steps, rounded to three bits after four of them."""
    bits = "{{weight_bits: 3, act_bits: null, first_last_bits: null, start_step: {}}}"
    return lambda steps: tiny_config(f"quantization={bits.format(steps)}", *SHORT)


@pytest.fixture(scope="module")
def waited(
    waiting_for: Callable[[int], RunConfig], tiny_prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A run whose weights wait for three more steps, and one whose are rounded since two."""
    early, done = (tmp_path_factory.mktemp(name) for name in ("early", "done"))
    stop_after(1, trainer_of(waiting_for(4), tiny_prepared, early))
    trainer_of(waiting_for(4), tiny_prepared, done).fit()
    return early, done


def waits_of(net: nn.Module) -> set[int | None]:
    left = [layer.weight.steps_left for layer in quantized_layers(net) if layer.weight is not None]
    return {None if each is None else int(each) for each in left}


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_weights_that_still_waited_start_a_run_as_weights_in_full_precision_do(
    waiting_for: Callable[[int], RunConfig], waited: tuple[Path, Path], tiny_prepared: Path, steps: int
) -> None:
    weights = read_checkpoint(waited[0] / "fold_0" / "last.safetensors").ema
    net = trainer_of(waiting_for(steps), tiny_prepared, None, init=waited[0]).net
    assert waits_of(net) == {steps or None}
    for layer in quantized_layers(net):
        full = weights[f"{layer.name}.parametrizations.weight.original"]
        assert torch.equal(layer.full_weight, full)
        torch.testing.assert_close(layer.weight.scale.detach(), 2 * full.abs().mean() / 3**0.5)


def test_weights_that_still_waited_start_a_run_of_other_bits_or_of_none(
    four_bits: MakeConfig, tiny_config: MakeConfig, waited: tuple[Path, Path], tiny_prepared: Path
) -> None:
    weights = read_checkpoint(waited[0] / "fold_0" / "last.safetensors").ema
    name = "encoder.stages.1.0.conv1"
    full = weights[f"{name}.parametrizations.weight.original"]
    plain = trainer_of(tiny_config(), tiny_prepared, None, init=waited[0]).net
    assert torch.equal(plain.get_submodule(name).weight, full)
    scales = scales_of(trainer_of(four_bits(), tiny_prepared, None, init=waited[0]).net)
    assert float(scales[f"{name}.weight"]) == pytest.approx(float(2 * full.abs().mean() / 7**0.5))
    assert scales[f"{name}.input"] > 0


@pytest.mark.parametrize("steps", [0, 5])
def test_weights_that_were_rounded_keep_their_scales_and_wait_as_long_as_this_run_says(
    waiting_for: Callable[[int], RunConfig], waited: tuple[Path, Path], tiny_prepared: Path, steps: int
) -> None:
    (theirs,) = load_predictor(waited[1]).nets
    net = trainer_of(waiting_for(steps), tiny_prepared, None, init=waited[1]).net
    assert waits_of(net) == {steps or None}
    assert scales_of(net) == scales_of(theirs)


def test_weights_that_never_waited_start_a_run_that_does(
    waiting_for: Callable[[int], RunConfig], tiny_prepared: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(waiting_for(0), tiny_prepared, tmp_path)
    trainer.fit()
    assert waits_of(trainer_of(waiting_for(5), tiny_prepared, None, init=tmp_path).net) == {5}


@pytest.mark.parametrize("source", [0, 1])
def test_a_run_from_weights_that_waited_is_rounded_from_its_own_step_on(
    waiting_for: Callable[[int], RunConfig],
    waited: tuple[Path, Path],
    tiny_prepared: Path,
    state_of: Callable[[Path], dict[str, Any]],
    tmp_path: Path,
    source: int,
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(waiting_for(4), data=tiny_prepared, out=whole, init=str(waited[source]))
    rows = RunLog(whole / "fold_0" / "metrics.jsonl").rows()
    assert [row.get("quantization") for row in rows] == [{"steps_left": 1}, None]
    (net,) = load_predictor(whole).nets  # where a warning is an error
    assert all(len(layer.layer.weight.unique()) <= 2**3 for layer in quantized_layers(net))
    stop_after(2, trainer_of(waiting_for(4), tiny_prepared, stopped, init=waited[source]))
    train(waiting_for(4), data=tiny_prepared, out=stopped, init=str(waited[source]), resume=True)
    assert state_of(stopped) == state_of(whole)


def test_heads_of_other_classes_start_fresh_with_scales_of_their_own(
    four_bits: MakeConfig, quantized: tuple[Path, Trainer]
) -> None:
    config, (run, trainer) = four_bits(), quantized
    net = build_net(config, classes=7)
    with pytest.warns(UserWarning, match="the heads .* start fresh"):
        load_initial_weights(net, run, quantize=config.quantization.build)
    scales, theirs = scales_of(net), scales_of(trainer.average.module)
    for layer in quantized_layers(net):
        name, is_head = f"{layer.name}.weight", "seg_layers" in layer.name
        mean = float(layer.full_weight.detach().abs().mean())
        assert (scales[name] == pytest.approx(2 * mean / layer.weight.levels[1] ** 0.5)) is is_head
        assert torch.equal(scales[name], theirs[name]) is not is_head
        if layer.input is not None:
            assert torch.equal(scales[f"{layer.name}.input"], theirs[f"{layer.name}.input"])


def test_folds_in_different_bits_are_not_averaged(
    quantized: tuple[Path, Trainer], tiny_run: Path, tmp_path: Path
) -> None:
    one = read_checkpoint(quantized[0] / "fold_0" / "last.safetensors")
    two = replace(one, config=json.loads(json.dumps(one.config)))
    two.config["run"]["quantization"]["first_last_bits"] = 4
    for fold, checkpoint in (("fold_0", one), ("fold_1", two)):
        (tmp_path / fold).mkdir()
        save_checkpoint(tmp_path / fold / "last.safetensors", checkpoint)
    with pytest.raises(UsageError, match="cannot be averaged; predict with one fold"):
        load_predictor(tmp_path)


def test_calibration_leaves_random_numbers_and_gradients_alone(four_bits: MakeConfig, tiny_prepared: Path) -> None:
    trainer = trainer_of(four_bits(), tiny_prepared, None)
    drawn = torch.rand(3)
    plain = trainer_of(four_bits("quantization.act_bits=null"), tiny_prepared, None)
    assert torch.equal(drawn, torch.rand(3))
    assert all(param.grad is None for net in (trainer.net, plain.net) for param in net.parameters())
