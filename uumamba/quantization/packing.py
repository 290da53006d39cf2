"""Packed storage of rounded weights, b bits a level."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from uumamba.quantization.layers import QuantizedLayer, quantized_layers
from uumamba.quantization.levels import level_range
from uumamba.quantization.overrides import parameter_name
from uumamba.runtime.errors import require


@dataclass(frozen=True)
class PackedWeight:
    """Weight as packed b-bit levels and a scale.

    Attributes:
        codes: uint8; levels counted from the lowest one, least significant bit first, without gaps.
        scale: a scalar, or a shape that broadcasts to that of the weight.
        bits: width of a level.
        shape: shape of the weight.
        dtype: type of the weight; None for that of the scale.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    shape: torch.Size
    dtype: torch.dtype | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scale."""
        return self.codes.nbytes + self.scale.nbytes

    def unpack(self) -> Tensor:
        """Return the rounded weight, bit for bit equal to the packed network's; every zero is positive."""
        levels = unpack_bits(self.codes, bits=self.bits, count=self.shape.numel()) + level_range(self.bits)[0]
        weight = levels.view(self.shape).to(self.scale.dtype) * self.scale
        return weight.to(self.dtype or self.scale.dtype)


def packed_weights(net: nn.Module) -> dict[str, PackedWeight]:
    """Return every rounded weight of a network after :func:`uumamba.quantization.quantize_`, by layer name.

    Raises:
        UsageError: no weight is quantized, a weight is not rounded before its ``start_step``, or a weight has another
            parametrization (weight or spectral norm) beside its quantizer.

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


def packed_bytes(net: nn.Module) -> int:
    """Return the bytes of all packed weights with their scales.

    Parameters in full precision are not counted: biases and norms, layers excluded by ``overrides``, and matrices of
    attention, recurrent layers, ``Bilinear`` and embeddings.
    """
    return sum(packed.nbytes for packed in packed_weights(net).values())


def pack_bits(levels: Tensor, *, bits: int) -> Tensor:
    """Pack whole numbers from 0 to ``2**bits - 1`` into bytes without gaps; zeros fill the last byte.

    Example:
        >>> pack_bits(torch.tensor([1, 2, 3]), bits=3)  # 1 + 2 * 8 + (3 mod 4) * 64, and the rest
        tensor([209,   0], dtype=torch.uint8)
    """
    digits = levels.flatten()[:, None].bitwise_right_shift(_places(bits, levels.device)) & 1
    return _join(torch.nn.functional.pad(digits.flatten(), (0, -digits.numel() % 8)).view(-1, 8)).to(torch.uint8)


def unpack_bits(packed: Tensor, *, bits: int, count: int) -> Tensor:
    """Return the first ``count`` numbers packed by :func:`pack_bits`, int64.

    Example:
        >>> unpack_bits(torch.tensor([209, 0], dtype=torch.uint8), bits=3, count=3)
        tensor([1, 2, 3])
    """
    digits = packed.to(torch.int64)[:, None].bitwise_right_shift(_places(8, packed.device)) & 1
    return _join(digits.flatten()[: count * bits].view(count, bits))


def check_rounding(layer: QuantizedLayer) -> None:
    """Raise if the weight of a layer is not rounded before its ``start_step``.

    Raises:
        UsageError: the key is the name of the weight.
    """
    require(
        layer.weight is None or not layer.weight.waits,
        parameter_name(layer.name, "weight"),
        got="full precision until start_step",
        expected="a rounded weight",
        fix="train until start_step, or call quantize_ without it",
    )


def _pack(layer: QuantizedLayer) -> PackedWeight:
    quantizer, weight, held = layer.weight, layer.full_weight, cast(Any, layer.layer)
    assert quantizer is not None  # the caller skips layers without one
    check_rounding(layer)
    require(
        len(held.parametrizations.weight) == 1,
        parameter_name(layer.name, "weight"),
        got=" and ".join(type(each).__name__ for each in held.parametrizations.weight),
        expected="no parametrization beside WeightQuantizer",
        fix=f"remove weight or spectral norm, or set overrides={{{layer.name!r}: None}}",
    )
    levels = quantizer.codes(weight).to(torch.int64) - quantizer.levels[0]
    codes = pack_bits(levels, bits=quantizer.bits)
    return PackedWeight(codes, quantizer.used_scale(), quantizer.bits, weight.shape, weight.dtype)


def _places(bits: int, device: torch.device) -> Tensor:
    return torch.arange(bits, device=device)


def _join(digits: Tensor) -> Tensor:
    """Convert rows of binary digits, least significant first, to numbers."""
    return digits.bitwise_left_shift(_places(digits.shape[1], digits.device)).sum(1)
