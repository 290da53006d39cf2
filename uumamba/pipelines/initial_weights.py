"""Fine-tuning: start a network from trained weights."""

import warnings
from pathlib import Path

import torch
from torch import nn

from uumamba.errors import UsageError
from uumamba.pipelines.models import checkpoint_paths
from uumamba.training.checkpoint import read_checkpoint

HEADS = "seg_layers"


def load_initial_weights(net: nn.Module, model: Path | str) -> list[str]:
    """Copy weights from a run, a fold or a checkpoint into a network of the same architecture.

    Segmentation heads whose class count differs stay freshly initialised, with one warning; any other difference is
    refused, since a half-loaded network trains worse than a fresh one without telling.

    Returns:
        The names that stayed fresh.

    Raises:
        UsageError: no checkpoint, several folds without a choice, or another architecture.
    """
    paths = checkpoint_paths(model)
    if len(paths) > 1:
        raise UsageError(f"{model} holds {len(paths)} folds; give one of them to --init, such as {paths[0].parent}.")
    checkpoint = read_checkpoint(paths[0])
    source = checkpoint.ema if checkpoint.ema is not None else checkpoint.net
    target = net.state_dict()
    different = sorted(
        name for name in source.keys() | target.keys() if _shape(source.get(name)) != _shape(target.get(name))
    )
    refused = [name for name in different if HEADS not in name]
    if refused:
        name = refused[0]
        raise UsageError(
            f"--init {model}: {len(refused)} weights differ from the network of this run, first {name} "
            f"({_shape(source.get(name))} there, {_shape(target.get(name))} here); use the same net settings."
        )
    if different:
        warnings.warn(f"--init {model}: the heads {', '.join(different)} start fresh (other classes).", stacklevel=2)
    net.load_state_dict({name: source[name] for name in source if name not in different}, strict=False)
    return different


def _shape(tensor: torch.Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
