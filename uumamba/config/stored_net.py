"""Network of a checkpoint, built from its configuration."""

import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from uumamba.config.net import reads_values
from uumamba.config.run_config import RunConfig
from uumamba.quantization import quantized_layers
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.memory_shortage import summarize_error
from uumamba.training.checkpoint import Checkpoint
from uumamba.training.run_folder import BEST

_MOST_TIMES = 4
"""Registered parameters per stored one while a network is built; tied and replaced parameters register twice."""


def load_net(config: RunConfig, checkpoint: Checkpoint, path: Path, *, classes: int, channels: int) -> nn.Module:
    """Build a checkpoint's network with its weights for prediction.

    The configuration is checked against the stored weights first, so that a damaged one takes no memory.

    Args:
        config: the checkpoint's configuration.
        checkpoint: its weights.
        path: the checkpoint's file, for errors and warnings.
        classes: number of outputs.
        channels: number of channels of an image.

    Returns:
        The network in evaluation mode.

    Raises:
        UsageError: the configuration is of another network than the weights.
    """
    weights = prediction_weights(checkpoint)
    build = partial(_build_like, config, weights, path, classes=classes, channels=channels)
    if not reads_values(config.net):
        with torch.device("meta"):  # takes no memory
            _check_shapes(build(), weights, path)
    net = build()
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(
            str(path),
            got=shorten(str(error), width=240, placeholder=" ..."),
            expected="the weights of the network in its configuration",
            fix="train again",
        ) from None
    _warn_if_unfinished(config, checkpoint, net, path)
    return net.eval()


def prediction_weights(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the moving average of the weights, or without one the weights."""
    return checkpoint.ema if checkpoint.ema is not None else checkpoint.net


def _build_like(config: RunConfig, weights: Mapping[str, Any], path: Path, *, classes: int, channels: int) -> nn.Module:
    """Build a configuration's network, not larger than the stored weights.

    A configuration in a file may ask for any size, so building ends at the first parameter too many.
    """
    most = sum(tensor.numel() for tensor in weights.values())
    built = {"tensors": 0, "numbers": 0}

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        built["tensors"] += parameter is not None
        built["numbers"] += 0 if parameter is None else parameter.numel()
        require(
            built["numbers"] <= _MOST_TIMES * most and built["tensors"] <= _MOST_TIMES * len(weights),
            str(path),
            got=f"a configuration of a network with more than the {most} stored weights",
            expected="the weights of the network in its configuration",
            fix="use an unchanged checkpoint",
        )

    # Kept are the caller's random state, since the initial weights are replaced, and other networks being built.
    with torch.random.fork_rng(devices=[]):
        hook = register_module_parameter_registration_hook(count)
        try:
            net = config.build_net(classes=classes, channels=channels)
            if config.quantization is not None:
                config.quantization.bind()(net)
        except UsageError:
            raise
        except (AssertionError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            got, expected = f"a network that cannot be built ({summarize_error(error)})", "a network's configuration"
            raise UsageError(str(path), got=got, expected=expected, fix="use an unchanged checkpoint") from None
        finally:
            hook.remove()
    return net


def _check_shapes(net: nn.Module, weights: Mapping[str, Any], path: Path) -> None:
    own, given = ({name: tuple(value.shape) for name, value in state.items()} for state in (net.state_dict(), weights))
    for name in sorted(own.keys() | given.keys()):
        require(
            own.get(name) == given.get(name),
            str(path),
            got=f"{name} of shape {given.get(name, 'none')}",
            expected=f"the shape {own.get(name, 'none')} of the network in its configuration",
            fix="use an unchanged checkpoint, or train again",
        )


def _warn_if_unfinished(config: RunConfig, checkpoint: Checkpoint, net: nn.Module, path: Path) -> None:
    """Warn of missing epochs and of weights that are not quantized yet.

    ``best`` may be of any epoch.
    """
    done, epochs = checkpoint.progress["epochs_done"], config.training.epochs
    if done < epochs and path.name != BEST:
        warnings.warn(
            f"{path} has done {done} of {epochs} epochs; finish the training with `uumamba train --resume`.",
            stacklevel=2,
        )
    if any(layer.weight is not None and layer.weight.is_delayed for layer in quantized_layers(net)):
        warnings.warn(
            f"{path} predicts in full precision, since it was saved before the first step with quantization; use a "
            "later checkpoint, or continue with `uumamba train --resume`.",
            stacklevel=2,
        )
