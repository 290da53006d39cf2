"""Packed storage of rounded weights with b bits per level."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from uumamba.quantization.layers import QuantizedLayer, quantized_layers
from uumamba.quantization.levels import level_range
from uumamba.quantization.overrides import parameter_name
from uumamba.runtime.errors import require
from uumamba.runtime.options import check_options


@dataclass(frozen=True)
class PackedWeight:
    """Weight as packed b-bit levels and a scale.

    Attributes:
        codes: uint8; levels minus the lowest level, least significant bit first, without gaps.
        scale: a scalar, or a tensor that broadcasts to the shape of the weight.
        bits: bit width of a level.
        shape: shape of the weight.
        dtype: type of the weight; None for the type of the scale.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    shape: torch.Size
    dtype: torch.dtype | None = None

    @property
    def nbytes(self) -> int:
        """Number of bytes of codes and scale."""
        return self.codes.nbytes + self.scale.nbytes

    def unpack(self) -> Tensor:
        """Return the rounded weight, equal to the network's weight bit for bit.

        The only exception is the sign of zeros, which is lost.
        """
        levels = unpack_bits(self.codes, bits=self.bits, count=self.shape.numel()) + level_range(self.bits)[0]
        weight = levels.view(self.shape).to(self.scale.dtype) * self.scale
        return weight.to(self.dtype or self.scale.dtype)


@check_options
def packed_weights(net: nn.Module) -> dict[str, PackedWeight]:
    """Return every rounded weight of a quantized network, by layer name.

    Args:
        net: a network after :func:`uumamba.quantization.quantize_`.

    Raises:
        UsageError: no weight is quantized, a weight is not rounded yet (``start_step``), or a weight has another
            parametrization (weight norm or spectral norm) besides its quantizer.

    Example:
        >>> from uumamba.quantization import quantize_
        >>> net = quantize_(nn.Sequential(nn.Linear(64, 64)), weight_bits=3, act_bits=None, first_last_bits=None)
        >>> packed = packed_weights(net)["0"]
        >>> packed.nbytes, 64 * 64 * 3 // 8 + 4  # and 16384 in float32
        (1540, 1540)
        >>> torch.equal(packed.unpack(), net[0].weight)
        True
    """
    packed = {layer.name: _pack(layer) for layer in quantized_layers(net) if layer.weight is not None}
    require(
        packed,
        "net",
        got=type(net).__name__,
        expected="a network with quantized weights",
        fix="call quantize_(net, weight_bits=...) first",
    )
    return packed


@check_options
def packed_bytes(net: nn.Module) -> int:
    """Return the number of bytes of all packed weights with their scales.

    Parameters in full precision are not included: biases and norms, layers excluded by ``overrides``, and matrices of
    attention, recurrent layers, ``Bilinear`` and embeddings.

    Args:
        net: a network after :func:`uumamba.quantization.quantize_`.

    Example:
        >>> from uumamba.quantization import quantize_
        >>> net = nn.Sequential(nn.Linear(64, 64))
        >>> packed_bytes(quantize_(net, weight_bits=2, act_bits=None, first_last_bits=None))  # 64 * 64 / 4 + 4
        1028
    """
    return sum(packed.nbytes for packed in packed_weights(net).values())


def pack_bits(levels: Tensor, *, bits: int) -> Tensor:
    """Pack integers from 0 to ``2**bits - 1`` into bytes without gaps.

    The least significant bit comes first. Zeros fill the last byte.

    Example:
        >>> pack_bits(torch.tensor([1, 2, 3]), bits=3)  # 1 + 2 * 8 + (3 mod 4) * 64, and the rest
        tensor([209,   0], dtype=torch.uint8)
    """
    digits = levels.cpu().numpy().reshape(-1, 1) >> np.arange(bits) & 1
    return torch.from_numpy(np.packbits(digits, bitorder="little")).to(levels.device)


def unpack_bits(packed: Tensor, *, bits: int, count: int) -> Tensor:
    """Return the first ``count`` integers packed by :func:`pack_bits`, int64.

    Example:
        >>> unpack_bits(torch.tensor([209, 0], dtype=torch.uint8), bits=3, count=3)
        tensor([1, 2, 3])
    """
    digits = np.unpackbits(packed.cpu().numpy(), count=count * bits, bitorder="little").reshape(count, bits)
    return torch.from_numpy(digits.astype(np.int64) @ (1 << np.arange(bits))).to(packed.device)


def check_rounding(layer: QuantizedLayer) -> None:
    """Raise if rounding of a layer's weight has not started.

    Raises:
        UsageError: the weight is in full precision until ``start_step``.
    """
    require(
        layer.weight is None or not layer.weight.is_delayed,
        parameter_name(layer.name, "weight"),
        got="full precision until start_step",
        expected="a rounded weight",
        fix="train until start_step, or call quantize_ without start_step",
    )


def _pack(layer: QuantizedLayer) -> PackedWeight:
    quantizer, weight, module = layer.weight, layer.full_weight, layer.layer
    assert quantizer is not None  # the caller skips layers without a weight quantizer
    check_rounding(layer)
    chain: Any = module.parametrizations.weight  # type: ignore[union-attr]  # torch types modules as tensors
    require(
        len(chain) == 1,
        parameter_name(layer.name, "weight"),
        got=" and ".join(type(each).__name__ for each in chain),
        expected="WeightQuantizer as the only parametrization",
        fix=f"remove weight norm or spectral norm, or set overrides={{{layer.name!r}: None}}",
    )
    codes = pack_bits(quantizer.codes(weight).to(torch.int64) - quantizer.levels[0], bits=quantizer.bits)
    return PackedWeight(codes, quantizer.used_scale(), quantizer.bits, weight.shape, weight.dtype)
