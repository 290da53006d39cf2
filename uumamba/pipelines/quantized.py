"""A run in few bits: where its network starts, its activations' first scales, and what its log says of it."""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uumamba.config.quantization import QuantizationConfig
from uumamba.optim import SharpnessAware
from uumamba.pipelines.initial_weights import load_initial_weights
from uumamba.pipelines.models import newest_checkpoint
from uumamba.quantization import ActivationQuantizer, calibrate, quantized_layers
from uumamba.runtime.network import bare_network, batch_to_device
from uumamba.training import ALONE, Ranks
from uumamba.types import Batch


def start_quantized(net: nn.Module, quantization: QuantizationConfig, *, init: str | None) -> None:
    """Quantise a fresh network in place, with the scales of its initial weights, or with those that come with them.

    Raises:
        UsageError: the initial weights are of another network, or in other bits.
    """
    if init is None:
        quantization.build(net)
    else:
        load_initial_weights(net, init, quantize=quantization.build)


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
    """Give activations their first scales from the first batches of a training that has no checkpoint yet.

    A resumed run finds its scales in the checkpoint, and scales that came with quantised weights stay. The first
    rank looks at whole batches and hands its scales to the others. The network runs in training mode, so that heads of
    deep supervision are reached, without autocast.
    """
    inputs = [layer.input for layer in quantized_layers(net) if layer.input is not None]
    known = [_scale_of(each) for each in inputs]
    if None not in known:
        return

    def scales() -> list[tuple[float, bool] | None] | None:
        if run_dir is not None and newest_checkpoint(run_dir) is not None:
            return None
        ready = (augment(batch_to_device(batch, device)) for batch in islice(batches, quantization.calibration_batches))
        calibrate(bare_network(net).train(), ready, run=lambda network, batch: network(batch["image"]))
        return [_scale_of(each) for each in inputs]

    found = ranks.broadcast(ranks.on_rank_zero(scales))
    for each, before, now in zip(inputs, known, known if found is None else found, strict=True):
        scale = before or now
        if scale is not None:
            each.set_scale(scale[0], signed=scale[1])


def attach_quantization(
    quantization: QuantizationConfig, optimizer: SharpnessAware, net: nn.Module
) -> Callable[[], dict[str, Any]]:
    """Join network and optimizer; what each epoch's row says of GAQAT, and of weights as long as they wait."""
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


def _scale_of(quantizer: ActivationQuantizer) -> tuple[float, bool] | None:
    """Scale and sign; None before it has one."""
    return None if quantizer.levels is None else (float(quantizer.scale.detach()), bool(quantizer.signed))
