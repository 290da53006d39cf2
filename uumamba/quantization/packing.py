"""Weights stored in as many bits as they have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from uumamba.quantization.layers import QuantizedLayer, quantized_layers
from uumamba.quantization.levels import level_range
from uumamba.quantization.overrides import called
from uumamba.runtime.errors import UsageError


@dataclass(frozen=True)
class PackedWeight:
    """A weight as a string of b-bit levels and its scale.

    Attributes:
        codes: bytes, uint8; each level as the distance from the lowest, least significant bit first, without gaps.
        scale: a scalar, or a shape that broadcasts to that of the weight.
        bits: of a level.
        shape: of the weight.
        dtype: of the weight; that of the scale where it is None.
    """

    codes: Tensor
    scale: Tensor
    bits: int
    shape: torch.Size
    dtype: torch.dtype | None = None

    @property
    def nbytes(self) -> int:
        """What codes and scale take."""
        return self.codes.nbytes + self.scale.nbytes

    def unpack(self) -> Tensor:
        """The rounded weight, bit for bit that of the network it was packed from; every zero is positive."""
        levels = unpack_bits(self.codes, bits=self.bits, count=self.shape.numel()) + level_range(self.bits)[0]
        weight = levels.view(self.shape).to(self.scale.dtype) * self.scale
        return weight.to(self.dtype or self.scale.dtype)


def packed_weights(net: nn.Module) -> dict[str, PackedWeight]:
    """Every rounded weight of a network after :func:`uumamba.quantization.quantize_`, by its layer's name.

    Raises:
        UsageError: no weight is quantised, one still waits for its start, or another parametrization (weight or
            spectral norm) was put on one beside its quantiser.

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
    if not packed:
        raise UsageError("No weight of this network is quantised; call quantize_(net, weight_bits=...) first.")
    return packed


def packed_bytes(net: nn.Module) -> int:
    """What the rounded weights of a network take with their scales, packed.

    Whatever stays in full precision is not in it: biases and norms, layers that ``overrides`` left out, and matrices of
    attention, recurrent layers, ``Bilinear`` and embeddings.
    """
    return sum(packed.nbytes for packed in packed_weights(net).values())


def pack_bits(levels: Tensor, *, bits: int) -> Tensor:
    """Whole numbers from 0 to ``2**bits - 1`` as bytes without gaps; the last byte is filled up with zeros.

    Example:
        >>> pack_bits(torch.tensor([1, 2, 3]), bits=3)  # 1 + 2 * 8 + (3 mod 4) * 64, and the rest
        tensor([209,   0], dtype=torch.uint8)
    """
    digits = levels.flatten()[:, None].bitwise_right_shift(_places(bits, levels.device)) & 1
    return _join(torch.nn.functional.pad(digits.flatten(), (0, -digits.numel() % 8)).view(-1, 8)).to(torch.uint8)


def unpack_bits(packed: Tensor, *, bits: int, count: int) -> Tensor:
    """The first ``count`` numbers that :func:`pack_bits` was given, int64.

    Example:
        >>> unpack_bits(torch.tensor([209, 0], dtype=torch.uint8), bits=3, count=3)
        tensor([1, 2, 3])
    """
    digits = packed.to(torch.int64)[:, None].bitwise_right_shift(_places(8, packed.device)) & 1
    return _join(digits.flatten()[: count * bits].view(count, bits))


def _pack(layer: QuantizedLayer) -> PackedWeight:
    quantizer, weight = layer.weight, layer.full_weight
    assert quantizer is not None  # the caller leaves out layers without one
    refuse_waiting([layer])
    _refuse_later_steps(layer)
    levels = quantizer.codes(weight).to(torch.int64) - quantizer.levels[0]
    codes = pack_bits(levels, bits=quantizer.bits)
    return PackedWeight(codes, quantizer.used_scale(), quantizer.bits, weight.shape, weight.dtype)


def refuse_waiting(layers: Sequence[QuantizedLayer]) -> None:
    """Refuse to store levels of a weight that is not rounded yet.

    Raises:
        UsageError: the message names the layer.
    """
    for layer in layers:
        if layer.weight is not None and layer.weight.waits:
            raise UsageError(
                f"The weight of {called(layer.name)} is not rounded before {layer.weight.steps_left} more steps; train "
                "on, or quantise without start_step."
            )


def _refuse_later_steps(layer: QuantizedLayer) -> None:
    """Levels and scale give back what the quantiser alone computes."""
    held: Any = layer.layer
    if len(held.parametrizations.weight) != 1:
        raise UsageError(
            f"The weight of {called(layer.name)} is rounded and also computed from other parameters, as weight norm "
            "and spectral norm do; remove that first, or leave the layer in full precision with "
            f"overrides={{{layer.name!r}: None}}."
        )


def _places(bits: int, device: torch.device) -> Tensor:
    return torch.arange(bits, device=device)


def _join(digits: Tensor) -> Tensor:
    """Rows of binary digits, least significant first, as numbers."""
    return digits.bitwise_left_shift(_places(digits.shape[1], digits.device)).sum(1)
