"""ONNX export of a quantized network, with integer weights and clipped ranges."""

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

OPSET = 21
_EXPORTER_LOGGER = "torch.onnx._internal.exporter._registration"


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

    Weights are stored as int8 levels with ``DequantizeLinear``; a quantized input becomes ``QuantizeLinear``, ``Clip``
    to the levels of its bits, and ``DequantizeLinear``, in int8. ONNX has no type of 3, 5, 6 or 7 bits, so every level
    takes a byte here; :func:`packed_weights` stores b bits a level. The network is copied and exported in evaluation
    mode, and stays unchanged. The file is whole or absent.

    Floats between two quantizers differ from torch's in the last bit, which moves a value at the edge of two levels to
    the other one: rarely, but by a whole level. The file keeps ONNX Runtime from fusing layers into integer kernels,
    which would round biases: the promise is the result, not speed.

    Args:
        net: a network after :func:`uumamba.quantization.quantize_`, calibrated, trained or not.
        example: an input of one sample or more.
        path: the file to write.
        input_name: name of the input in the file.
        output_name: name of the output in the file.
        dynamic_batch: allow any number of samples along axis 0 of input and output; other axes are those of
            ``example``. ONNX Runtime runs the file on one sample: a network that computes another output for one sample
            than for several is found if its logits differ by a hundredth of their mean.

    Raises:
        UsageError: nothing is quantized, input and output have the same name, network or example are not float32, a
            weight is not rounded yet or cannot be copied, an input has no scale, a package of the extra ``onnx`` is
            missing, ONNX lacks an operation of the network, or ``dynamic_batch`` is set and the graph holds for some
            batch sizes only.

    Example:
        >>> import tempfile
        >>> from uumamba.quantization import quantize_
        >>> net = quantize_(nn.Sequential(nn.Linear(2, 2)), weight_bits=3, act_bits=None)
        >>> file = export_onnx(net, torch.zeros(2, 2), Path(tempfile.mkdtemp()) / "net.onnx")  # doctest: +SKIP
    """
    _check(net, example, input_name, output_name)
    copy = deepcopy(net).eval()
    with torch.no_grad():
        copy(example)  # raises errors with our keys, such as a missing scale, before the exporter does
        answer = _run_one_sample(copy, example) if dynamic_batch else None
    for layer in quantized_layers(copy):
        if layer.weight is not None:
            _store_levels(layer)
    program = _export(copy, example, input_name, output_name, dynamic_batch=dynamic_batch)
    if dynamic_batch:
        check_any_batch(program, type(net).__name__, example[:1], answer)
    with whole_file(path) as unfinished:
        program.save(unfinished)
    return Path(path)


def _check(net: nn.Module, example: Tensor, input_name: str, output_name: str) -> None:
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
    require(input_name != output_name, "output_name", got=output_name, expected="another name than input_name")
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
            # Torch copies no tensor that has a gradient function, which the old weight norm stores in the module.
            require(
                not isinstance(value, Tensor) or value.is_leaf,
                parameter_name(name, part),
                got="a tensor computed from other parameters",
                expected="a parameter, which can be copied",
                fix="call remove_weight_norm or remove_spectral_norm, or use torch.nn.utils.parametrizations",
            )


def _run_one_sample(net: nn.Module, example: Tensor) -> Any:
    try:
        return net(example[:1])
    except RuntimeError as error:
        found = f"an error for one sample ({_first_cause(error)})"
        raise fixed_batch_error(type(net).__name__, found) from error


class _Dequantize(nn.Module):
    """Conversion of levels to the rounded weight, in the exported graph only.

    The trailing Max changes no result. It keeps ONNX Runtime from fusing the node with a matrix product and rounding
    the other factor to 8 bits, which moved the logits of a U-Mamba by a tenth of their spread.
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
        """Return the weight in float32."""
        inputs = (levels, self.scale, self.zero)
        as_weight: dict[str, Any] = {"dtype": torch.float32, "shape": levels.shape}
        weight = torch.onnx.ops.symbolic("DequantizeLinear", inputs, self.attributes, **as_weight)
        return torch.onnx.ops.symbolic("Max", (weight, self.least), **as_weight)


def _store_levels(layer: QuantizedLayer) -> None:
    """Replace the weight by its int8 levels and a node that dequantizes them."""
    held: Any = layer.layer
    assert layer.weight is not None  # the caller skips layers without one
    levels, scale = layer.weight.codes(layer.full_weight), layer.weight.used_scale()
    steps = held.parametrizations.weight  # changed in place: the copy shares its class with the network
    del steps.original
    steps.register_buffer("original", levels)
    steps[list(steps).index(layer.weight)] = _Dequantize(scale, channel_axis(held), layer.weight.levels[0])


def _export(net: nn.Module, example: Tensor, input_name: str, output_name: str, *, dynamic_batch: bool) -> Any:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        require(
            find_spec(package), package, got=None, expected="an installed package", fix="pip install 'uumamba[onnx]'"
        )
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    if dynamic_batch and len(example) == 1:
        example = torch.cat((example, example))  # torch treats a size of 1 as constant
    names: dict[str, Any] = {"input_names": [input_name], "output_names": [output_name]}
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                net, (example,), opset_version=OPSET, dynamic_shapes=shapes, verbose=False, **names
            )
    except torch.onnx.OnnxExporterError as error:
        name = type(net).__name__
        raise UsageError("net", got=f"{name}: {_first_cause(error)}", expected="operations that ONNX has") from error
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter, which warns of its own parts and of skipped torchvision operators."""
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
    """Return the first line of the root cause; torch's own message explains how to report a bug."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]
