"""Short causal convolution of the Mamba block, with its activation."""

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from uumamba.ops.function_transforms import (
    needs_derivative_rules,
    refuse_second_derivative,
    require_first_derivative,
)
from uumamba.ops.native_library import (
    Rows,
    call_library,
    choose_instruction_set,
    choose_threads,
    find_missing_library,
    get_pointer,
)
from uumamba.ops.scan_operator import can_skip_dispatcher
from uumamba.runtime.errors import require

_MOST_TAPS = 8  # kMostTaps of native/selective_scan.h


def causal_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Apply a causal depthwise convolution and ``silu``.

    .. math:: y_l = \mathrm{silu}\Big(\text{bias} + \sum_k \text{weight}_k\, x_{l - K + 1 + k}\Big)

    Each channel has its own filter. Positions before the first are 0. In float32 on the CPU, with the C++ extension,
    the forward and the backward pass each read x once, in its own memory layout. Otherwise, in an exported ONNX graph,
    and for forward mode and the gradients of ``torch.func``, torch's convolution computes the result. Second
    derivatives of ``loss.backward()`` need float64.

    Args:
        x: ``(batch, channels, length)``, any strides.
        weight: ``(channels, taps)``.
        bias: ``(channels,)``.

    Raises:
        UsageError: weight or bias do not fit the channels of x.

    Example:
        >>> x = torch.tensor([[[1.0, 2.0, 3.0]]])
        >>> y = causal_convolution(x, torch.tensor([[1.0, 10.0]]))     # silu of 10, 21 and 32
        >>> y.round(decimals=2)
        tensor([[[10., 21., 32.]]])
    """
    require(x.ndim == 3, "x", got=tuple(x.shape), expected="the shape (batch, channels, length)")
    require(
        weight.ndim == 2 and weight.shape[0] == x.shape[1],
        "weight",
        got=tuple(weight.shape),
        expected=f"the shape ({x.shape[1]}, taps), with the channels of x",
    )
    if bias is not None:
        require(bias.shape == x.shape[1:2], "bias", got=tuple(bias.shape), expected=f"the shape ({x.shape[1]},)")
    given = [tensor for tensor in (x, weight, bias) if tensor is not None]
    types = {tensor.dtype for tensor in given}
    fits = x.device.type == "cpu" and types == {torch.float32} and weight.shape[1] <= _MOST_TAPS
    fits = fits and not needs_derivative_rules(given)
    # ONNX runtimes do not have the custom operator.
    if fits and find_missing_library() is None and not torch.onnx.is_in_onnx_export():
        return (_forward if can_skip_dispatcher() else _native)(x, weight, bias)
    length, taps = x.shape[2], weight.shape[1]
    return F.silu(F.conv1d(x, weight[:, None], bias, padding=taps - 1, groups=x.shape[1])[..., :length])


class _Convolution(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("batch", "channels", "length", "taps")),
        *((name, c_int32) for name in ("threads", "instruction_set")),
        ("x", Rows),
        *((name, c_void_p) for name in ("weight", "bias")),
    )

    @classmethod
    def describe(cls, x: Tensor, weight: Tensor, bias: Tensor | None) -> "_Convolution":
        """Describe contiguous tensors, which must outlive the call."""
        threads, best = choose_threads(x.numel()), choose_instruction_set(None)
        return cls(*x.shape, weight.shape[1], threads, best, Rows.describe(x), get_pointer(weight), get_pointer(bias))


class _ConvolutionGradients(ctypes.Structure):
    _fields_ = (("y", Rows), ("x", Rows), ("weight", c_void_p), ("bias", c_void_p))


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    require_first_derivative(x, weight, bias)
    y, weight = torch.empty_like(x), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    call_library("convolution_forward", _Convolution.describe(x, weight, bias), Rows.describe(y))
    return y


_native = torch.library.custom_op("uumamba::native_convolution", _forward, mutates_args=())


@_native.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(x)


def _empty_gradients(grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return memory for the gradients of x, weight and bias."""
    return torch.empty_like(x), weight.new_empty(weight.shape), weight.new_empty(0 if bias is None else x.shape[1])


@torch.library.custom_op("uumamba::native_convolution_backward", mutates_args=())
def _native_backward(grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    grads = _empty_gradients(grad_y, x, weight, bias)
    gradients = _ConvolutionGradients(
        Rows.describe(grad_y),
        Rows.describe(grads[0]),
        get_pointer(grads[1]),
        None if bias is None else get_pointer(grads[2]),
    )
    call_library("convolution_backward", _Convolution.describe(x, weight, bias), gradients)
    return grads


_native_backward.register_fake(_empty_gradients)
_native_backward.register_autograd(refuse_second_derivative)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backpropagate(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    require_first_derivative(grad_y, *ctx.saved_tensors)
    grad_x, grad_weight, grad_bias = _native_backward(grad_y, *ctx.saved_tensors)
    return grad_x, grad_weight, None if ctx.saved_tensors[2] is None else grad_bias


_native.register_autograd(_backpropagate, setup_context=_keep_inputs)
