"""Initial weights of a network, copied from a trained one."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from textwrap import shorten
from typing import Any

from torch import nn

from uumamba.config.stored_config import has_regions, stored_channels
from uumamba.config.stored_net import prediction_weights
from uumamba.data.channels import ONE_CHANNEL, describe_channels
from uumamba.data.label_scheme import LabelScheme
from uumamba.quantization import holds_scales
from uumamba.runtime.errors import UsageError, require
from uumamba.training.checkpoint import Checkpoint

HEADS = "seg_layers"
WEIGHT, QUANTIZER = "parametrizations.weight.original", "parametrizations.weight.0."
STEPS_LEFT = f"{QUANTIZER}steps_left"


def copy_weights(
    net: nn.Module,
    checkpoint: Checkpoint,
    *,
    model: str,
    quantize: Callable[[nn.Module], Any] | None = None,
    channels: Sequence[str] = ONE_CHANNEL,
    labels: LabelScheme | None = None,
) -> list[str]:
    """Copy a checkpoint's weights into a network of the same architecture.

    Segmentation heads with another number of classes keep their random initial weights, with one warning, and so do all
    heads where only one of model and network has regions, since their outputs have other meanings. Any other
    difference raises, since a half-loaded network trains worse than a new one. The number of steps until quantization
    starts is not copied. Weights that were not quantized yet count as weights in full precision.

    Args:
        net: newly initialised; changed.
        checkpoint: weights and configuration of a trained network.
        model: name of the checkpoint's model, for errors and the warning.
        quantize: called once with a network that shall be quantized: after weights in full precision were copied, so
            that scales start from them, or before quantized weights are copied with their scales.
        channels: names of the channels of the network's images.
        labels: labels that the network is for; None compares only the numbers of outputs.

    Returns:
        Names of the weights that keep their initial values.

    Raises:
        UsageError: the checkpoint is of another architecture, another number of channels, or other bit widths.
    """
    given_channels = stored_channels(checkpoint.config)
    is_reordered = given_channels != tuple(channels) and sorted(given_channels) == sorted(channels)
    require(
        len(given_channels) == len(channels) and not is_reordered,
        "--init",
        got=f"{model} of {describe_channels(given_channels)}",
        expected=f"a model of {len(channels)} channels, as the data set: {describe_channels(channels)}",
        fix="choose another model, or train without --init",
    )
    source = _drop_steps_left(prediction_weights(checkpoint))
    is_quantized = holds_scales(source)
    require(
        quantize or not is_quantized,
        "--init",
        got=f"{model} (quantized)",
        expected="weights in full precision, or the same quantization in this run",
    )
    if quantize is not None and is_quantized:
        quantize(net)
    different = _find_new_heads(net, source, model=model)
    if labels is not None and bool(labels.regions) != has_regions(checkpoint.config):
        heads = [name for name in _list_weights(net) if HEADS in name]
        expected = f"a model of {'regions' if labels.regions else 'structures'}, as in the data set"
        require(heads, "--init", got=model, expected=expected)
        different = sorted({*different, *heads})
    if different:
        warnings.warn(f"--init {model}: the heads {', '.join(different)} start fresh (other classes).", stacklevel=3)
    initial = {*different, *(name.replace(WEIGHT, f"{QUANTIZER}scale") for name in different if name.endswith(WEIGHT))}
    try:
        net.load_state_dict({name: source[name] for name in source if name not in initial}, strict=False)
    except RuntimeError as error:
        raise UsageError(
            "--init",
            got=f"{model} ({shorten(str(error), width=240, placeholder=' ...')})",
            expected="weights in full precision or in the bit widths of this run",
        ) from None
    if quantize is not None and not is_quantized:
        quantize(net)
    return different


def _find_new_heads(net: nn.Module, source: Mapping[str, Any], *, model: str) -> list[str]:
    """List the weights of heads with another number of classes.

    Raises:
        UsageError: other weights differ.
    """
    target = _list_weights(net)
    given, own = ({name: tuple(value.shape) for name, value in state.items()} for state in (source, target))
    different = [name for name in sorted(given.keys() | own.keys()) if given.get(name) != own.get(name)]
    for name in different:
        require(
            HEADS in name and not _is_part_of_one_head(name, source, target),
            "--init",
            got=f"{model} with {name} of shape {given.get(name)}",
            expected=f"the shape {own.get(name)}",
            fix="use the same net and quantization settings",
        )
    return different


def _list_weights(net: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in net.state_dict().items() if not name.endswith(STEPS_LEFT)}


def _drop_steps_left(state: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the numbers of steps until quantization.

    Weights with steps left are in full precision; their unused scales are also dropped.
    """
    if any(name.endswith(STEPS_LEFT) and left > 0 for name, left in state.items()):
        return {name.replace(WEIGHT, "weight"): value for name, value in state.items() if QUANTIZER not in name}
    return {name: value for name, value in state.items() if not name.endswith(STEPS_LEFT)}


def _is_part_of_one_head(name: str, source: Mapping[str, Any], target: Mapping[str, Any]) -> bool:
    """Return whether two networks share a head but not this part.

    This is so where only one network is quantized.
    """
    if name in source and name in target:
        return False
    parts = name.split(".")
    head = ".".join(parts[: parts.index(HEADS) + 2]) + "."
    return all(any(other.startswith(head) for other in state) for state in (source, target))
