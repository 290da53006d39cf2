"""Quantizers with a learned scale, for weights and layer inputs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from uumamba.quantization.fake_quantize import fake_quantize
from uumamba.quantization.levels import SMALLEST_SCALE, first_scale, level_range
from uumamba.quantization.overrides import parameter_name
from uumamba.runtime.errors import require
from uumamba.runtime.options import Bits, check_options

FROM_FIRST_STEP = 0


def scale_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type of a learned scale, at least float32.

    Updates of a scale are too small for half precision.

    Example:
        >>> scale_type(torch.bfloat16), scale_type(torch.float64)
        (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


class _Quantizer(nn.Module):
    """Base of both quantizers, with a fixed bit width."""

    width: Tensor

    @check_options
    def __init__(self, bits: Bits) -> None:
        super().__init__()
        self.bits = bits
        self.register_buffer("width", torch.tensor(bits))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if int(self.width) != self.bits:
            rest[-1].append(f"{prefix.removesuffix('.')} has {self.bits} bits, the loaded state {int(self.width)}")
            self.width.fill_(self.bits)


class WeightQuantizer(_Quantizer):
    r"""Parametrization that rounds a weight to levels of a learned scale.

    The :math:`2^b` levels are signed, :math:`-2^{b-1}` to :math:`2^{b-1} - 1`. With ``start_step``, rounding starts
    after this number of steps, counted by :func:`uumamba.quantization.count_steps`. Before, the scale is set from the
    weight in every step, so that a moving average of the network has a matching scale.

    Args:
        weight: tensor for the initial scale.
        bits: 2 to 8.
        channel_axis: axis with one scale per index; None for a single scale.
        start_step: optimizer steps before rounding starts.

    Raises:
        UsageError: ``bits`` is outside 2 to 8.

    Example:
        >>> quantizer = WeightQuantizer(torch.tensor([1.0, -1.0]), bits=2)
        >>> quantizer(torch.tensor([1.4, -9.0])).tolist()  # levels -2 to 1 of the scale 2
        [2.0, -4.0]

    References:
        Esser et al., *Learned Step Size Quantization*, ICLR 2020, arXiv:1902.08153.
        Javed et al., *QT-DoG: Quantization-aware Training for Domain Generalization*, ICML 2025, arXiv:2410.06020
        (rounding starts after a number of steps).
        Differs from the papers: see :func:`uumamba.quantization.fake_quantize`.
    """

    steps_left: Tensor | None

    @check_options
    def __init__(
        self, weight: Tensor, bits: int, *, channel_axis: int | None = None, start_step: int = FROM_FIRST_STEP
    ) -> None:
        super().__init__(bits)
        self.channel_axis = channel_axis
        self.levels = level_range(bits)
        self.scale = nn.Parameter(self._first_scale(weight.detach()))
        self.register_buffer("steps_left", torch.tensor(start_step) if start_step else None)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, rounded after ``start_step``; same shape."""
        quantized = fake_quantize(weight, self.scale, *self.levels)
        # Selected on the device without synchronisation; a moving average of the network has its own counter.
        return quantized if self.steps_left is None else torch.where(self.steps_left > 0, weight, quantized)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Tensor:
        """Return the levels of the rounded weight, int8."""
        return (weight.to(self.scale.dtype) / self.used_scale()).clamp(*self.levels).round().to(torch.int8)

    @property
    def is_delayed(self) -> bool:
        """Return whether rounding has not started yet."""
        return self.steps_left is not None and bool(self.steps_left > 0)

    def used_scale(self) -> Tensor:
        """Return the scale, clamped from below, without a gradient."""
        return self.scale.detach().clamp(min=SMALLEST_SCALE)

    @torch.no_grad()
    def count_step(self, weight: Tensor) -> None:
        """Count an optimizer step before rounding starts; update the scale."""
        if self.steps_left is not None and self.is_delayed:
            self.steps_left -= 1
            # The network itself needs this scale at the last step only. A moving average of the network averages the
            # scales of all steps, which is nearly the scale of the averaged weights.
            self.scale.copy_(self._first_scale(weight))

    def extra_repr(self) -> str:
        return f"bits={self.bits}" + ("" if self.channel_axis is None else f", channel_axis={self.channel_axis}")

    def _first_scale(self, weight: Tensor) -> Tensor:
        return first_scale(weight.to(scale_type(weight.dtype)), self.levels[1], channel_axis=self.channel_axis)


class ActivationQuantizer(_Quantizer):
    r"""Quantizer that rounds a layer's input to levels of a learned scale.

    :func:`uumamba.quantization.calibrate` sets the scale and chooses the range of the :math:`2^b` levels: 0 to
    :math:`2^b - 1` for values that are never negative (after a ReLU), else :math:`-2^{b-1}` to :math:`2^{b-1} - 1`. A
    forward pass before calibration raises an error. A scale of 0 in a ``state_dict`` means not calibrated.

    Args:
        bits: 2 to 8.
        name: name of the layer, for messages.

    Raises:
        UsageError: ``bits`` is outside 2 to 8; or, from ``forward``, the scale is not set.

    Example:
        >>> quantizer = ActivationQuantizer(bits=2)
        >>> quantizer.set_scale(0.5, signed=False)
        >>> quantizer(torch.tensor([[0.3, 0.8, 7.0]])).tolist()
        [[0.5, 1.0, 1.5]]

    References:
        Esser et al., *Learned Step Size Quantization*, ICLR 2020, arXiv:1902.08153.
        Differs from the paper: the scale starts from all calibration batches, not from the first training batch.
    """

    signed: Tensor

    @check_options
    def __init__(self, bits: int, *, name: str = "") -> None:
        super().__init__(bits)
        self.name = name
        self.scale = nn.Parameter(torch.zeros(()))
        self.register_buffer("signed", torch.tensor(True))
        self.levels: tuple[int, int] | None = None
        self.observer: Callable[[Tensor], None] | None = None

    def forward(self, values: Tensor) -> Tensor:
        """Round ``(batch, *)``; same shape."""
        if self.observer is not None:
            self.observer(values)
            return values
        require(
            self.levels,
            parameter_name(self.name, "input"),
            got="no scale",
            expected="a calibrated scale",
            fix="call calibrate(net, batches) with a few training batches, or load a calibrated checkpoint",
        )
        assert self.levels is not None  # checked above
        if torch.onnx.is_in_onnx_export():
            return self._to_onnx(values, *self.levels)
        return fake_quantize(values, self.scale, *self.levels, features=values.numel() // max(len(values), 1))

    @torch.no_grad()
    def set_scale(self, scale: float, *, signed: bool) -> None:
        """Set the scale and the signed or unsigned range."""
        self.scale.fill_(max(scale, SMALLEST_SCALE))
        self.signed.fill_(signed)
        self.levels = level_range(self.bits, signed=signed)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, levels={self.levels}"

    def _to_onnx(self, values: Tensor, low: int, high: int) -> Tensor:
        """Quantize, clip and dequantize by ONNX operators.

        The clip gives the range of the bits, because ONNX has no type of 3, 5, 6 or 7 bits. The ``Max`` at the start
        changes no result. It prevents ONNX Runtime from fusing a layer between two quantizers and rounding its bias,
        which changed levels in 7 of 64 samples of a 3-bit network. Unsigned values are also int8: uint8 times int8
        overflows in ONNX Runtime's kernels for older processors.
        """
        offset = min(0, 127 - high)  # -128 for the levels 0 to 255, to fit into int8
        scale = self.scale.detach().clamp(min=SMALLEST_SCALE)
        zero, least, most = (torch.tensor(level + offset, dtype=torch.int8) for level in (0, low, high))
        as_levels: dict[str, Any] = {"dtype": torch.int8, "shape": values.shape}
        as_values = as_levels | {"dtype": values.dtype}
        values = torch.onnx.ops.symbolic("Max", (values, low * scale), **as_values)
        levels = torch.onnx.ops.symbolic("QuantizeLinear", (values, scale, zero), **as_levels)
        levels = torch.onnx.ops.symbolic("Clip", (levels, least, most), **as_levels)
        return torch.onnx.ops.symbolic("DequantizeLinear", (levels, scale, zero), **as_values)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        self.levels = level_range(self.bits, signed=bool(self.signed)) if self.scale.detach() != 0 else None
