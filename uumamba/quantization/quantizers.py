"""The modules that hold a scale: one in place of a weight, one before a layer's input."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from uumamba.quantization.fake_quantize import fake_quantize
from uumamba.quantization.levels import SMALLEST_SCALE, check_bits, first_scale, level_range
from uumamba.runtime.errors import UsageError


def scale_type(dtype: torch.dtype) -> torch.dtype:
    """In which a scale of such values learns: single precision at least, as its steps are small.

    Example:
        >>> scale_type(torch.bfloat16), scale_type(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


class WeightQuantizer(nn.Module):
    r"""A parametrization that rounds a weight to at most :math:`2^b` levels of a learned scale.

    The range is signed, :math:`-2^{b-1}` to :math:`2^{b-1} - 1`. With ``start_step`` the weight passes as it is until
    so many steps were counted by :func:`uumamba.quantization.count_steps`; then the scale starts from the weight of
    that moment. Until then it follows the weight, so that averages of the network have a scale that fits theirs.

    Args:
        weight: what the scale starts from.
        bits: 2 to 8.
        channel_axis: one scale for each index of this axis; one for all without it.
        start_step: optimizer steps to wait.

    Raises:
        UsageError: ``bits`` is outside 2 to 8.

    Example:
        >>> quantizer = WeightQuantizer(torch.tensor([1.0, -1.0]), bits=2)
        >>> quantizer(torch.tensor([1.4, -9.0])).tolist()  # levels -2 to 1 of the scale 2
        [2.0, -4.0]

    References:
        Esser et al., *Learned Step Size Quantization*, ICLR 2020, arXiv:1902.08153.
        Javed et al., *QT-DoG: Quantization-aware Training for Domain Generalization*, ICML 2025, arXiv:2410.06020
        (a start after so many steps).
        Differs from the papers: see :func:`uumamba.quantization.fake_quantize`.
    """

    width: Tensor
    steps_left: Tensor | None

    def __init__(self, weight: Tensor, bits: int, *, channel_axis: int | None = None, start_step: int = 0) -> None:
        super().__init__()
        check_bits(bits, "bits")
        self.bits, self.channel_axis = bits, channel_axis
        self.levels = level_range(bits)
        self.scale = nn.Parameter(self._first_scale(weight.detach()))
        self.register_buffer("width", torch.tensor(bits))
        self.register_buffer("steps_left", torch.tensor(start_step) if start_step else None)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight rounded, or as it is while it waits; the same shape."""
        quantized = fake_quantize(weight, self.scale, *self.levels)
        # Chosen on the device: nothing waits for it, and an average of the network follows its own counter.
        return quantized if self.steps_left is None else torch.where(self.steps_left > 0, weight, quantized)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """The levels of the rounded weight, int8."""
        return (weight.to(self.scale.dtype) / self.used_scale()).clamp(*self.levels).round().to(torch.int8)

    @property
    def waits(self) -> bool:
        """Whether the weight still passes as it is."""
        return self.steps_left is not None and bool(self.steps_left > 0)

    def used_scale(self) -> Tensor:
        """The scale as it counts, without a gradient."""
        return self.scale.detach().clamp(min=SMALLEST_SCALE)

    @torch.no_grad()
    def count_step(self, weight: Tensor) -> None:
        """One optimizer step less to wait, up to which the scale follows ``weight``."""
        if self.steps_left is None or not self.waits:
            return
        self.steps_left -= 1
        # The weight needs it at the last step alone. An average of the network, which nobody tells of that step, holds
        # the average of all these scales by then, which is nearly the scale of its own weights.
        self.scale.copy_(self._first_scale(weight))

    def extra_repr(self) -> str:
        """What is printed of it."""
        return f"bits={self.bits}" + ("" if self.channel_axis is None else f", channel_axis={self.channel_axis}")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        _refuse_other_width(self.width, self.bits, prefix, rest[-1])

    def _first_scale(self, weight: Tensor) -> Tensor:
        return first_scale(weight.to(scale_type(weight.dtype)), self.levels[1], channel_axis=self.channel_axis)


class Observer(Protocol):
    """Looks at what an activation quantiser is given while scales are calibrated."""

    def see(self, values: Tensor) -> None:
        """Take note of one batch."""


class ActivationQuantizer(nn.Module):
    r"""Rounds what goes into a layer to at most :math:`2^b` levels of a learned scale, one for the whole tensor.

    :func:`uumamba.quantization.calibrate` sets the scale and chooses the range: 0 to :math:`2^b - 1` for values that
    are never negative (after a ReLU), else :math:`-2^{b-1}` to :math:`2^{b-1} - 1`. Before that a forward pass is
    refused. A scale of 0 in a ``state_dict`` means not calibrated.

    Args:
        bits: 2 to 8.
        name: of the layer, for messages.

    Raises:
        UsageError: ``bits`` is outside 2 to 8; or, from ``forward``, there is no scale yet.

    Example:
        >>> quantizer = ActivationQuantizer(bits=2)
        >>> quantizer.set_scale(0.5, signed=False)
        >>> quantizer(torch.tensor([[0.3, 0.8, 7.0]])).tolist()
        [[0.5, 1.0, 1.5]]

    References:
        Esser et al., *Learned Step Size Quantization*, ICLR 2020, arXiv:1902.08153.
        Differs from the paper: the scale starts from all batches of the calibration, not from the first of training.
    """

    width: Tensor
    signed: Tensor

    def __init__(self, bits: int, *, name: str = "the layer") -> None:
        super().__init__()
        check_bits(bits, "bits")
        self.bits, self.name = bits, name
        self.scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("width", torch.tensor(bits))
        self.register_buffer("signed", torch.tensor(True))
        self.levels: tuple[int, int] | None = None
        self.observer: Observer | None = None

    def forward(self, values: Tensor) -> Tensor:
        """``(batch, *)`` rounded; the same shape."""
        if self.observer is not None:
            self.observer.see(values)
            return values
        if self.levels is None:
            raise UsageError(
                f"The input of {self.name} is to be quantised and has no scale yet; run calibrate(net, batches) on a "
                "few batches of training data, or load a checkpoint that holds the scales."
            )
        if torch.onnx.is_in_onnx_export():
            return self._as_onnx(values, *self.levels)
        return fake_quantize(values, self.scale, *self.levels, features=values.numel() // max(len(values), 1))

    @torch.no_grad()
    def set_scale(self, scale: float, *, signed: bool) -> None:
        """Give it a scale and a range."""
        self.scale.fill_(max(scale, SMALLEST_SCALE))
        self.signed.fill_(signed)
        self.levels = level_range(self.bits, signed=signed)

    def extra_repr(self) -> str:
        """What is printed of it."""
        return f"bits={self.bits}, levels={self.levels}"

    def _as_onnx(self, values: Tensor, low: int, high: int) -> Tensor:
        """Quantize, clip to the range of the bits, dequantize: ONNX has no type of 3, 5, 6 or 7 bits.

        The Max before changes no result. It keeps ONNX Runtime from seeing a layer between two quantisers, whose bias
        it would round: by that 7 of 64 samples of a 3-bit network had values on other levels. Without a sign too the
        type is int8: uint8 times int8 overflows in its kernels for older processors.
        """
        offset = min(0, 127 - high)  # -128 for the levels 0 to 255, which int8 holds no other way
        scale = self.scale.detach().clamp(min=SMALLEST_SCALE)
        zero, least, most = (torch.tensor(level + offset, dtype=torch.int8) for level in (0, low, high))
        how: dict[str, Any] = {"dtype": torch.int8, "shape": values.shape}
        as_values = how | {"dtype": values.dtype}
        values = torch.onnx.ops.symbolic("Max", (values, low * scale), **as_values)
        levels = torch.onnx.ops.symbolic("QuantizeLinear", (values, scale, zero), **how)
        levels = torch.onnx.ops.symbolic("Clip", (levels, least, most), **how)
        return torch.onnx.ops.symbolic("DequantizeLinear", (levels, scale, zero), **as_values)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        _refuse_other_width(self.width, self.bits, prefix, rest[-1])
        self.levels = level_range(self.bits, signed=bool(self.signed)) if self.scale.detach() != 0 else None


def _refuse_other_width(width: Tensor, bits: int, prefix: str, problems: list[str]) -> None:
    """Note as a problem that a quantiser of ``bits`` was given the state of another width, and keep its own."""
    if int(width) != bits:
        problems.append(f"{prefix.removesuffix('.')} has {bits} bits and was given the state of {int(width)}")
        width.fill_(bits)
