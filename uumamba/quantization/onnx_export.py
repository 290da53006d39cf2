"""ONNX export of a quantized network with integer weights."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uumamba.quantization.dynamic_batch import check_any_batch, fixed_batch_error
from uumamba.quantization.layers import QuantizedLayer, channel_axis, quantized_layers
from uumamba.quantization.overrides import parameter_name
from uumamba.quantization.packing import check_rounding
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.files import whole_file
from uumamba.runtime.options import check_options

OPSET = 21
_EXPORTER_LOGGER = "torch.onnx._internal.exporter._registration"


@check_options
def export_onnx(
    net: nn.Module,
    example: Tensor,
    path: Path | str,
    *,
    input_name: str = "image",
    output_name: str = "logits",
    dynamic_batch: bool = True,
) -> Path:
    """Write a quantized network as an ONNX file of opset 21.

    Weights are stored as int8 levels with ``DequantizeLinear``. A quantized input becomes ``QuantizeLinear``, ``Clip``
    to the levels of its bits, and ``DequantizeLinear``, in int8. ONNX has no type of 3, 5, 6 or 7 bits, so every level
    takes a byte here; :func:`packed_weights` stores b bits per level. A copy of the network is exported in evaluation
    mode; the network stays unchanged. The file is written completely or not at all.

    Floats between two quantizers differ from torch's in the last bit. Rarely, this moves a value at the edge of two
    levels to the other level. The file prevents ONNX Runtime from fusing layers into integer kernels, which would round
    biases: the export aims at equal results, not at speed.

    Args:
        net: a calibrated network after :func:`uumamba.quantization.quantize_`.
        example: an input of one sample or more.
        path: the file to write.
        input_name: name of the input in the file.
        output_name: name of the output in the file.
        dynamic_batch: allow any number of samples along axis 0 of input and output; other axes are as in ``example``.
            ONNX Runtime then runs the file on one sample, to compare the output for a batch of one. Logits that differ
            by 1 % of their mean raise an error.

    Raises:
        UsageError: nothing is quantized, input and output have the same name, network or example are not float32, a
            weight is not rounded yet or cannot be copied, an input has no scale, a package of the extra ``onnx`` is
            missing, ONNX lacks an operation of the network, or ``dynamic_batch`` is set and the graph is valid for some
            batch sizes only.

    Example:
        >>> import tempfile
        >>> from uumamba.quantization import quantize_
        >>> net = quantize_(nn.Sequential(nn.Linear(2, 2)), weight_bits=3, act_bits=None)
        >>> file = export_onnx(net, torch.zeros(2, 2), Path(tempfile.mkdtemp()) / "net.onnx")  # doctest: +SKIP
    """
    _check_exportable(net, example, input_name, output_name)
    copy = deepcopy(net).eval()
    with torch.no_grad():
        copy(example)  # raises our own errors, such as a missing scale, before the exporter runs
        output = _run_one_sample(copy, example) if dynamic_batch else None
    for layer in quantized_layers(copy):
        if layer.weight is not None:
            _store_levels(layer)
    program = _export(copy, example, input_name, output_name, dynamic_batch=dynamic_batch)
    if dynamic_batch:
        check_any_batch(program, type(net).__name__, example[:1], output)
    with whole_file(path) as unfinished:
        program.save(unfinished)
    return Path(path)


def _check_exportable(net: nn.Module, example: Tensor, input_name: str, output_name: str) -> None:
    layers = list(quantized_layers(net))
    require(
        layers,
        "net",
        got=type(net).__name__,
        expected="a quantized network",
        fix="call quantize_ first, or use torch.onnx.export",
    )
    for layer in layers:
        check_rounding(layer)
    require(input_name != output_name, "output_name", got=output_name, expected="a name different from input_name")
    for name, tensor in (*net.named_parameters(), ("example", example)):
        require(
            tensor.dtype == torch.float32 or not tensor.is_floating_point(),
            name,
            got=tensor.dtype,
            expected="torch.float32",
            fix="export net.float() with a float32 example",
        )
    for name, module in net.named_modules():
        for part, value in vars(module).items():
            # deepcopy fails for tensors with a gradient function; the old weight norm stores such a tensor.
            require(
                not isinstance(value, Tensor) or value.is_leaf,
                parameter_name(name, part),
                got="a tensor computed from other parameters",
                expected="a parameter",
                fix="call remove_weight_norm or remove_spectral_norm, or use torch.nn.utils.parametrizations",
            )


def _run_one_sample(net: nn.Module, example: Tensor) -> Any:
    try:
        return net(example[:1])
    except RuntimeError as error:
        found = f"an error for one sample ({_first_cause(error)})"
        raise fixed_batch_error(type(net).__name__, found) from error


class _Dequantize(nn.Module):
    """Conversion of integer levels to the rounded weight in the exported graph.

    The ``Max`` at the end changes no result. It prevents ONNX Runtime from fusing the node with a matrix product and
    rounding the other factor to 8 bits, which changed the logits of a U-Mamba by a tenth of their spread.
    """

    scale: Tensor
    zero: Tensor
    least: Tensor

    def __init__(self, scale: Tensor, axis: int, lowest: int) -> None:
        super().__init__()
        self.register_buffer("least", lowest * scale)
        self.attributes: dict[str, Any] = {} if scale.ndim == 0 else {"axis": axis}
        self.register_buffer("scale", scale.flatten() if scale.ndim else scale)
        self.register_buffer("zero", torch.zeros_like(self.scale, dtype=torch.int8))

    def forward(self, levels: Tensor) -> Tensor:
        inputs = (levels, self.scale, self.zero)
        as_weight: dict[str, Any] = {"dtype": torch.float32, "shape": levels.shape}
        weight = torch.onnx.ops.symbolic("DequantizeLinear", inputs, self.attributes, **as_weight)
        return torch.onnx.ops.symbolic("Max", (weight, self.least), **as_weight)


def _store_levels(layer: QuantizedLayer) -> None:
    """Replace the weight by its int8 levels and a dequantizing node."""
    module: Any = layer.layer
    assert layer.weight is not None  # the caller skips layers without a weight quantizer
    levels, scale = layer.weight.codes(layer.full_weight), layer.weight.used_scale()
    chain = module.parametrizations.weight  # changed in place: the copy shares its class with the network
    del chain.original
    chain.register_buffer("original", levels)
    chain[list(chain).index(layer.weight)] = _Dequantize(scale, channel_axis(module), layer.weight.levels[0])


def _export(net: nn.Module, example: Tensor, input_name: str, output_name: str, *, dynamic_batch: bool) -> Any:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(
            find_spec(package),
            package,
            got="no such package",
            expected="an installed package",
            fix="run pip install 'uumamba[onnx]'",
        )
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    if dynamic_batch and len(example) == 1:
        example = torch.cat((example, example))  # torch treats a size of 1 as constant
    try:
        with _silence_exporter():
            return torch.onnx.export(
                net,
                (example,),
                input_names=[input_name],
                output_names=[output_name],
                opset_version=OPSET,
                dynamic_shapes=shapes,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UsageError(
            "net", got=f"{type(net).__name__}: {_first_cause(error)}", expected="a network of ONNX operations"
        ) from error


@contextmanager
def _silence_exporter() -> Iterator[None]:
    """Silence warnings of torch's exporter about its own parts and torchvision."""
    logger = logging.getLogger(_EXPORTER_LOGGER)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_cause(error: BaseException) -> str:
    """Return the first line of an error's root cause.

    The message of torch's own error only explains how to report a bug.
    """
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]
