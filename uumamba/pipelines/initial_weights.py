"""Start of a training: weights of another run, quantization, and first scales of the activations."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from uumamba.config.quantization import QuantizationConfig
from uumamba.optim import SharpnessAware
from uumamba.pipelines.models import checkpoint_paths
from uumamba.pipelines.run_layout import newest_checkpoint
from uumamba.quantization import ActivationQuantizer, calibrate, holds_scales, quantized_layers
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.network import bare_network, batch_to_device
from uumamba.training import ALONE, Ranks
from uumamba.training.checkpoint import read_checkpoint
from uumamba.types import Batch

HEADS = "seg_layers"
WEIGHT, QUANTIZER = "parametrizations.weight.original", "parametrizations.weight.0."
STEPS_LEFT = f"{QUANTIZER}steps_left"


def load_initial_weights(
    net: nn.Module, model: Path | str, *, quantize: Callable[[nn.Module], Any] | None = None
) -> list[str]:
    """Copy weights of a run, a fold or a checkpoint into a network of the same architecture.

    Segmentation heads with another number of classes stay freshly initialised, with one warning. Any other difference
    raises, since a half-loaded network trains worse than a fresh one. The steps until quantization starts are not
    copied, and weights that were not quantized yet count as weights in full precision.

    Args:
        net: freshly initialised; changed.
        model: as ``uumamba predict`` takes it, of one fold.
        quantize: called once with a network that shall be quantized: after weights in full precision were copied, so
            that scales start from them, or before quantized weights are, which come with their scales.

    Returns:
        Names of the weights that stayed fresh.

    Raises:
        UsageError: there is no checkpoint, several folds without a choice, another architecture, or other bit widths.
    """
    paths = checkpoint_paths(model)
    require(
        len(paths) == 1,
        "--init",
        got=f"{model} with {len(paths)} folds",
        expected=f"one fold, such as {paths[0].parent}",
    )
    checkpoint = read_checkpoint(paths[0])
    source = _without_steps_left(checkpoint.ema if checkpoint.ema is not None else checkpoint.net)
    is_quantized = holds_scales(source)
    if is_quantized:
        expected = "weights in full precision, or the same quantization in this run"
        require(quantize, "--init", got=f"{model} (quantized)", expected=expected)
    if quantize is not None and is_quantized:
        quantize(net)
    target = {name: value for name, value in net.state_dict().items() if not name.endswith(STEPS_LEFT)}
    shapes = [{name: tuple(value.shape) for name, value in state.items()} for state in (source, target)]
    names = sorted(shapes[0].keys() | shapes[1].keys())
    different = [name for name in names if shapes[0].get(name) != shapes[1].get(name)]
    for name in different:
        require(
            HEADS in name and not _is_in_one_alone(name, source, target),
            "--init",
            got=f"{model} with {name} of shape {shapes[0].get(name)}",
            expected=f"{shapes[1].get(name)}",
            fix="use the same net and quantization settings",
        )
    if different:
        warnings.warn(f"--init {model}: the heads {', '.join(different)} start fresh (other classes).", stacklevel=2)
    scales = [name.replace(WEIGHT, f"{QUANTIZER}scale") for name in different if name.endswith(WEIGHT)]
    fresh = {*different, *scales}
    try:
        net.load_state_dict({name: source[name] for name in source if name not in fresh}, strict=False)
    except RuntimeError as error:
        got = f"{model} ({shorten(str(error), width=240, placeholder=' ...')})"
        expected = "weights in full precision, or in the bit widths of this run"
        raise UsageError("--init", got=got, expected=expected) from None
    if quantize is not None and not is_quantized:
        quantize(net)
    return different


def calibrate_at_start(
    net: nn.Module,
    quantization: QuantizationConfig,
    batches: Iterable[Batch],
    *,
    augment: Callable[[Batch], Batch],
    device: str,
    run_dir: Path | None,
    ranks: Ranks = ALONE,
) -> None:
    """Set the activations' first scales from the first batches, unless a checkpoint has them.

    Scales that came with quantized weights stay. Rank 0 uses whole batches and sends its scales to the other ranks.
    The network runs in training mode, so that heads of deep supervision are reached, without autocast.
    """
    inputs = [layer.input for layer in quantized_layers(net) if layer.input is not None]
    known = [_scale_of(each) for each in inputs]
    if None not in known:
        return

    def find_scales() -> list[tuple[float, bool] | None] | None:
        if run_dir is not None and newest_checkpoint(run_dir) is not None:
            return None
        ready = (augment(batch_to_device(batch, device)) for batch in islice(batches, quantization.calibration_batches))
        calibrate(bare_network(net).train(), ready, run=lambda network, batch: network(batch["image"]))
        return [_scale_of(each) for each in inputs]

    found = ranks.broadcast(ranks.on_rank_zero(find_scales))
    for each, before, now in zip(inputs, known, known if found is None else found, strict=True):
        scale = before or now
        if scale is not None:
            each.set_scale(scale[0], signed=scale[1])


def attach_quantization(
    quantization: QuantizationConfig, optimizer: SharpnessAware, net: nn.Module
) -> Callable[[], dict[str, Any]]:
    """Attach GAQAT to the optimizer; return a function with the figures of an epoch's row."""
    gaqat = quantization.attach(optimizer, bare_network(net))

    def numbers() -> dict[str, Any]:
        found: dict[str, Any] = {}
        weights = [layer.weight for layer in quantized_layers(bare_network(net))]
        left = [int(each.steps_left) for each in weights if each is not None and each.steps_left is not None]
        if any(left):
            found["quantization"] = {"steps_left": max(left)}
        if gaqat is not None:
            found["gaqat"] = {"frozen_fraction": gaqat.frozen_fraction}
            if gaqat.disorder:
                every = torch.cat([each.flatten() for each in gaqat.disorder.values()])
                found["gaqat"]["disorder"] = float(every.nanmean())
        return found

    return numbers


def _without_steps_left(state: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the steps until quantization; weights with some left are in full precision, their scales unused."""
    if any(name.endswith(STEPS_LEFT) and left > 0 for name, left in state.items()):
        return {name.replace(WEIGHT, "weight"): value for name, value in state.items() if QUANTIZER not in name}
    return {name: value for name, value in state.items() if not name.endswith(STEPS_LEFT)}


def _is_in_one_alone(name: str, source: Mapping[str, Any], target: Mapping[str, Any]) -> bool:
    """Return whether both networks have this head but only one has this part, as where only one is quantized."""
    if name in source and name in target:
        return False
    parts = name.split(".")
    head = ".".join(parts[: parts.index(HEADS) + 2]) + "."
    return all(any(other.startswith(head) for other in side) for side in (source, target))


def _scale_of(quantizer: ActivationQuantizer) -> tuple[float, bool] | None:
    """Scale and sign; None before calibration."""
    return None if quantizer.levels is None else (float(quantizer.scale.detach()), bool(quantizer.signed))
