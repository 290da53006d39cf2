"""Which layers of a network are quantised, and where their inputs pass."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from uumamba.quantization.overrides import called
from uumamba.quantization.quantizers import ActivationQuantizer, WeightQuantizer, scale_type

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
OTHER_KINDS = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)
INPUT = "input_quantizer"


@dataclass(frozen=True)
class QuantizedLayer:
    """A layer after :func:`uumamba.quantization.quantize_`.

    Attributes:
        name: its place in the network.
        layer: the module.
        weight: the quantiser of its weight, None in full precision.
        input: the quantiser of its input, None in full precision.
    """

    name: str
    layer: nn.Module
    weight: WeightQuantizer | None
    input: ActivationQuantizer | None

    @property
    def full_weight(self) -> Tensor:
        """The weight before it is rounded."""
        held: Any = self.layer
        original: Tensor = (
            held.parametrizations.weight.original if parametrize.is_parametrized(held, "weight") else held.weight
        )
        return original


def channel_axis(layer: nn.Module) -> int:
    """The axis of a weight that holds the output channels: 1 in transposed convolutions, else 0.

    With several groups axis 1 of a transposed convolution holds the channels of one group; no axis holds them all.
    """
    return 1 if isinstance(layer, TRANSPOSED) else 0


def candidates(net: nn.Module) -> dict[str, nn.Module]:
    """The layers that can be quantised, by name, in the order in which the network registers them."""
    return {name: module for name, module in net.named_modules() if isinstance(module, KINDS)}


def other_matrices(net: nn.Module) -> dict[str, nn.Module]:
    """The modules of torch whose own weights are matrices that cannot be quantised here, by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, OTHER_KINDS)}


def quantized_layers(net: nn.Module) -> Iterator[QuantizedLayer]:
    """The layers that are quantised, in the order in which the network registers them."""
    for name, layer in candidates(net).items():
        weight = next((each for each in _parametrizations_of(layer) if isinstance(each, WeightQuantizer)), None)
        entering: Any = getattr(layer, INPUT, None)
        if weight is not None or entering is not None:
            yield QuantizedLayer(name, layer, weight, entering)


def quantize_input(net: nn.Module, name: str, bits: int) -> None:
    """Let a layer's input pass a quantiser, which becomes its submodule ``input_quantizer``.

    The projections of a Mamba block may be used without being called: what ``in_proj`` sees is the block's input, and
    what ``dt_proj`` sees are the first ``dt_rank`` columns that ``x_proj`` gives. Its depthwise convolution sees what
    leaves no module, and keeps its input.
    """
    layer, block = net.get_submodule(name), _mamba_block_of(net, name)
    role = name.rpartition(".")[2] if block is not None else ""
    if role == "conv1d":
        return
    weight: Any = layer.weight
    quantizer = ActivationQuantizer(bits, name=called(name)).to(weight.device, scale_type(weight.dtype))
    layer.add_module(INPUT, quantizer)
    if block is not None and role == "in_proj":
        block.register_forward_pre_hook(partial(_round_input, quantizer), with_kwargs=True)
    elif block is not None and role == "dt_proj":
        block.get_submodule("x_proj").register_forward_hook(partial(_round_columns, quantizer, _step_rank(block)))
    else:
        layer.register_forward_pre_hook(partial(_round_input, quantizer), with_kwargs=True)


def _round_input(
    quantizer: ActivationQuantizer, layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if arguments:
        return (quantizer(arguments[0]), *arguments[1:]), named
    first = next(iter(inspect.signature(layer.forward).parameters))
    return arguments, named | {first: quantizer(named[first])}


def _round_columns(
    quantizer: ActivationQuantizer, columns: int, layer: nn.Module, arguments: tuple[Any, ...], output: Tensor
) -> Tensor:
    return torch.cat((quantizer(output[..., :columns]), output[..., columns:]), dim=-1)


def _mamba_block_of(net: nn.Module, name: str) -> nn.Module | None:
    """The block whose projection it is; told by its parts, as networks of others have such blocks too."""
    block = net.get_submodule(name.rpartition(".")[0])
    parts = (getattr(block, each, None) for each in ("in_proj", "x_proj", "dt_proj", "out_proj"))
    return block if all(isinstance(part, nn.Linear) for part in parts) else None


def _step_rank(block: nn.Module) -> int:
    projection: Any = block.get_submodule("dt_proj")
    return int(projection.in_features)


def _parametrizations_of(layer: nn.Module) -> list[nn.Module]:
    held: Any = layer
    return list(held.parametrizations.weight) if parametrize.is_parametrized(held, "weight") else []
