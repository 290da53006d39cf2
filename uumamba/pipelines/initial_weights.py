"""Fine-tuning: start a network from trained weights."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn

from uumamba.pipelines.models import checkpoint_paths
from uumamba.quantization import holds_scales
from uumamba.runtime.errors import UsageError
from uumamba.training.checkpoint import read_checkpoint

HEADS = "seg_layers"
WEIGHT, QUANTIZER = "parametrizations.weight.original", "parametrizations.weight.0."


def load_initial_weights(
    net: nn.Module, model: Path | str, *, quantize: Callable[[nn.Module], Any] | None = None
) -> list[str]:
    """Copy weights from a run, a fold or a checkpoint into a network of the same architecture.

    Segmentation heads whose class count differs stay freshly initialised, with one warning; any other difference is
    refused, since a half-loaded network trains worse than a fresh one without telling. How long weights wait to be
    rounded is not copied, and those that still waited count as weights in full precision.

    Args:
        net: freshly initialised; changed.
        model: as ``uumamba predict`` takes it, of one fold.
        quantize: called once with the network, which shall be quantised: when weights in full precision were copied,
            so that scales start from them, or before those of a quantised network are, which bring their scales.

    Returns:
        The names that stayed fresh.

    Raises:
        UsageError: no checkpoint, several folds without a choice, another architecture, or other bits.
    """
    paths = checkpoint_paths(model)
    if len(paths) > 1:
        raise UsageError(f"{model} holds {len(paths)} folds; give one of them to --init, such as {paths[0].parent}.")
    checkpoint = read_checkpoint(paths[0])
    source = _without_waiting(checkpoint.ema if checkpoint.ema is not None else checkpoint.net)
    is_quantized = holds_scales(source)
    if is_quantized:
        if quantize is None:
            raise UsageError(
                f"--init {model} is a quantised network and this run's is not; give this run the same quantization, or "
                "start from weights in full precision."
            )
        quantize(net)
    target = {name: value for name, value in net.state_dict().items() if not _is_wait(name)}
    different = sorted(
        name for name in source.keys() | target.keys() if _shape(source.get(name)) != _shape(target.get(name))
    )
    refused = [name for name in different if HEADS not in name or _is_held_otherwise(name, source, target)]
    if refused:
        name = refused[0]
        raise UsageError(
            f"--init {model}: {len(refused)} weights differ from the network of this run, first {name} "
            f"({_shape(source.get(name))} there, {_shape(target.get(name))} here); use the same net and "
            "quantization settings."
        )
    if different:
        warnings.warn(f"--init {model}: the heads {', '.join(different)} start fresh (other classes).", stacklevel=2)
    fresh = (*different, *_own_scales(different))
    try:
        net.load_state_dict({name: source[name] for name in source if name not in fresh}, strict=False)
    except RuntimeError as error:
        problem = shorten(str(error), width=240, placeholder=" ...")
        raise UsageError(
            f"--init {model} is in other bits than this run ({problem}); use the same quantization, or start from "
            "weights in full precision."
        ) from None
    if quantize is not None and not is_quantized:
        quantize(net)
    return different


def _without_waiting(state: Mapping[str, Any]) -> dict[str, Any]:
    """The weights without the steps that they wait; in full precision where some are left, as no scale was used yet."""
    if any(_is_wait(name) and left > 0 for name, left in state.items()):
        return {name.replace(WEIGHT, "weight"): value for name, value in state.items() if QUANTIZER not in name}
    return {name: value for name, value in state.items() if not _is_wait(name)}


def _is_wait(name: str) -> bool:
    return name.endswith(f"{QUANTIZER}steps_left")


def _is_held_otherwise(name: str, source: Mapping[str, Any], target: Mapping[str, Any]) -> bool:
    """Whether there is such a head on both sides and one of them lacks this part, as where one alone is quantised."""
    if name in source and name in target:
        return False
    parts = name.split(".")
    head = ".".join(parts[: parts.index(HEADS) + 2]) + "."
    return all(any(other.startswith(head) for other in side) for side in (source, target))


def _own_scales(names: Sequence[str]) -> list[str]:
    """The scales of weights that are among the names."""
    return [name.replace(WEIGHT, f"{QUANTIZER}scale") for name in names if name.endswith(WEIGHT)]


def _shape(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
