"""Quantized layers of a network, and the hooks on their inputs."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from uumamba.quantization.quantizers import ActivationQuantizer, WeightQuantizer, scale_type
from uumamba.runtime.options import check_options

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
# Torch's modules with other weight matrices, which cannot be quantized.
OTHER_KINDS = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)
INPUT = "input_quantizer"


@dataclass(frozen=True)
class QuantizedLayer:
    """Quantized layer of a network after :func:`uumamba.quantization.quantize_`.

    Attributes:
        name: name of the layer in the network.
        layer: the module.
        weight: quantizer of the weight; None in full precision.
        input: quantizer of the input; None in full precision.
    """

    name: str
    layer: nn.Module
    weight: WeightQuantizer | None
    input: ActivationQuantizer | None

    @property
    def full_weight(self) -> Tensor:
        """The weight before rounding."""
        layer: Any = self.layer
        is_parametrized = parametrize.is_parametrized(layer, "weight")
        return cast(Tensor, layer.parametrizations.weight.original if is_parametrized else layer.weight)


def channel_axis(layer: nn.Module) -> int:
    """Return the weight axis of the output channels.

    The axis is 1 for transposed convolutions, else 0. In a transposed convolution of several groups, axis 1 has the
    channels of a single group.
    """
    return 1 if isinstance(layer, TRANSPOSED) else 0


def find_modules(net: nn.Module, kinds: tuple[type[nn.Module], ...] = KINDS) -> dict[str, nn.Module]:
    """Return modules of some kinds by name, in order of registration.

    By default these are all quantizable layers.
    """
    return {name: module for name, module in net.named_modules() if isinstance(module, kinds)}


@check_options
def quantized_layers(net: nn.Module) -> Iterator[QuantizedLayer]:
    """Yield the quantized layers in the network's order of registration.

    Args:
        net: a network after :func:`uumamba.quantization.quantize_`.

    Example:
        >>> from uumamba.quantization import quantize_
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> [layer.name for layer in quantized_layers(quantize_(net))]
        ['0', '2']
    """
    for name, layer in find_modules(net).items():
        weight = next((each for each in layer.modules() if isinstance(each, WeightQuantizer)), None)
        input_quantizer: Any = getattr(layer, INPUT, None)
        if weight is not None or input_quantizer is not None:
            yield QuantizedLayer(name, layer, weight, input_quantizer)


def quantize_input(net: nn.Module, name: str, bits: int) -> None:
    """Quantize a layer's input by a submodule ``input_quantizer``.

    A Mamba block may use the weights of its projections without a call of these layers. There the input of ``in_proj``
    is the input of the block, and the input of ``dt_proj`` is the first ``dt_rank`` columns of the output of
    ``x_proj``. The input of the depthwise convolution stays in full precision, because no module returns it.
    """
    layer, block = net.get_submodule(name), _find_mamba_block(net, name)
    role = name.rpartition(".")[2] if block is not None else ""
    if role == "conv1d":
        return
    weight: Any = layer.weight
    quantizer = ActivationQuantizer(bits, name=name).to(weight.device, scale_type(weight.dtype))
    layer.add_module(INPUT, quantizer)
    if block is not None and role == "dt_proj":
        step_rank = cast(nn.Linear, layer).in_features
        block.get_submodule("x_proj").register_forward_hook(partial(_round_columns, quantizer, step_rank))
        return
    module = block if block is not None and role == "in_proj" else layer
    module.register_forward_pre_hook(partial(_round_input, quantizer), with_kwargs=True)


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


def _find_mamba_block(net: nn.Module, name: str) -> nn.Module | None:
    """Return the Mamba block of a projection, recognised by its four projections."""
    block = net.get_submodule(name.rpartition(".")[0])
    parts = (getattr(block, each, None) for each in ("in_proj", "x_proj", "dt_proj", "out_proj"))
    return block if all(isinstance(part, nn.Linear) for part in parts) else None
