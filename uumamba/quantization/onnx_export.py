"""A quantised network as ONNX, with integer weights and clipped ranges, as ONNX Runtime runs it."""

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

from uumamba.quantization.any_batch import for_one_size, refuse_other_batches
from uumamba.quantization.layers import QuantizedLayer, channel_axis, quantized_layers
from uumamba.quantization.overrides import called
from uumamba.quantization.packing import refuse_waiting
from uumamba.runtime.errors import UsageError
from uumamba.runtime.files import whole_file

OPSET = 21
_SAYS_WHAT_IT_SKIPS = "torch.onnx._internal.exporter._registration"


def export_onnx(
    net: nn.Module,
    example: Tensor,
    path: Path | str,
    *,
    input_name: str = "image",
    output_name: str = "logits",
    dynamic_batch: bool = True,
) -> Path:
    """Write a network after :func:`uumamba.quantization.quantize_` as an ONNX file of opset 21.

    Weights are stored as int8 levels with ``DequantizeLinear``; a quantised input becomes ``QuantizeLinear``, ``Clip``
    to the levels of its bits, ``DequantizeLinear``, in int8. ONNX has no type of 3, 5, 6 or 7 bits, so every
    level takes a byte here; :func:`packed_weights` stores as few as there are. The network is copied, in evaluation
    mode, and left as it is. The file is whole or absent.

    What a runtime computes between two quantisers differs from torch in the last bit of a float, which may push a value
    that lies on the edge of two levels to the other one: rarely, and then by a whole level. The file is written so that
    ONNX Runtime fuses no layer into an integer kernel, which would round biases: what is promised is the result, and
    no speed.

    Args:
        net: calibrated, and trained or not.
        example: an input of one sample or more.
        path: the file to write.
        input_name: of the input in the file.
        output_name: of the output.
        dynamic_batch: let any number of samples pass, along axis 0 of input and output; other axes are those of
            ``example``. The graph is tried on one sample, and a network that treats one otherwise than several is
            found where that moves its logits by a hundredth of their mean; not where the network itself writes other
            operators of ONNX, with ``torch.onnx.ops.symbolic``.

    Raises:
        UsageError: nothing is quantised, input and output have one name, the network or the example is not float32, a
            weight is not rounded yet, or is one that torch cannot copy, an input has no scale, a package of the extra
            ``onnx`` is missing, the network holds an operation that torch cannot write as ONNX, or ``dynamic_batch`` is
            set and its graph is for some sizes of batch alone.

    Example:
        >>> import tempfile
        >>> from uumamba.quantization import quantize_
        >>> net = quantize_(nn.Sequential(nn.Linear(2, 2)), weight_bits=3, act_bits=None)
        >>> file = export_onnx(net, torch.zeros(2, 2), Path(tempfile.mkdtemp()) / "net.onnx")  # doctest: +SKIP
    """
    _check(net, example, input_name, output_name)
    copy = deepcopy(net).eval()
    with torch.no_grad():
        copy(example)  # says in our words what no exporter could, such as a missing scale
        answer = _answer_to_one(copy, example) if dynamic_batch else None
    for layer in quantized_layers(copy):
        if layer.weight is not None:
            _store_levels(layer)
    program = _program(copy, example, input_name, output_name, dynamic_batch=dynamic_batch)
    if dynamic_batch:
        refuse_other_batches(program, type(net).__name__, example[:1], answer)
    with whole_file(path) as unfinished:
        program.save(unfinished)
    return Path(path)


def _check(net: nn.Module, example: Tensor, input_name: str, output_name: str) -> None:
    layers = list(quantized_layers(net))
    if not layers:
        raise UsageError("Nothing of this network is quantised; call quantize_ first, or torch.onnx.export itself.")
    refuse_waiting(layers)
    if input_name == output_name:
        raise UsageError(f"input_name and output_name are both {input_name!r}; no runtime loads that, name one anew.")
    for name, tensor in (*net.named_parameters(), ("the example", example)):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UsageError(
                f"ONNX scales levels in float32 and {name} is {tensor.dtype}; export net.float() with such an example."
            )
    _refuse_derived(net)


def _refuse_derived(net: nn.Module) -> None:
    """Torch copies no tensor that it computed with a gradient, which weight norm of old keeps from pass to pass."""
    for name, module in net.named_modules():
        derived = [key for key, value in vars(module).items() if isinstance(value, Tensor) and not value.is_leaf]
        if derived:
            raise UsageError(
                f"The {derived[0]} of {called(name)} is computed from other parameters and kept beside them, as "
                "weight_norm and spectral_norm of torch.nn.utils do, and such a network cannot be copied; undo it with "
                "remove_weight_norm or remove_spectral_norm, or use those of torch.nn.utils.parametrizations."
            )


def _answer_to_one(net: nn.Module, example: Tensor) -> Any:
    """What the network says of the first sample alone; refused where it cannot be asked."""
    try:
        return net(example[:1])
    except RuntimeError as error:
        raise for_one_size(type(net).__name__, f"it fails on one sample ({_first_cause(error)})") from error


class _Dequantize(nn.Module):
    """Levels to the rounded weight, in the exported graph alone.

    The Max after it changes no result. It keeps ONNX Runtime from fusing it with a product of matrices, for which it
    would round the other factor to 8 bits: by that the logits of a U-Mamba moved by a tenth of their spread.
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
        """The weight in float32."""
        inputs = (levels, self.scale, self.zero)
        as_weight: dict[str, Any] = {"dtype": torch.float32, "shape": levels.shape}
        weight = torch.onnx.ops.symbolic("DequantizeLinear", inputs, self.attributes, **as_weight)
        return torch.onnx.ops.symbolic("Max", (weight, self.least), **as_weight)


def _store_levels(layer: QuantizedLayer) -> None:
    """Put the int8 levels in the place of the weight, and a node that dequantises them before its uses."""
    held: Any = layer.layer
    assert layer.weight is not None  # the caller leaves out layers without one
    levels, scale = layer.weight.codes(layer.full_weight), layer.weight.used_scale()
    steps = held.parametrizations.weight  # not removed and made anew: a copy shares its class with the network itself
    del steps.original
    steps.register_buffer("original", levels)
    steps[list(steps).index(layer.weight)] = _Dequantize(scale, channel_axis(held), layer.weight.levels[0])


def _program(net: nn.Module, example: Tensor, input_name: str, output_name: str, *, dynamic_batch: bool) -> Any:
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            raise UsageError(f'Writing ONNX needs the package {package}; pip install "uumamba[onnx]".')
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    if dynamic_batch and len(example) == 1:
        example = torch.cat((example, example))  # torch takes a size of 1 for a constant
    names: dict[str, Any] = {"input_names": [input_name], "output_names": [output_name]}
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                net, (example,), opset_version=OPSET, dynamic_shapes=shapes, verbose=False, **names
            )
    except torch.onnx.OnnxExporterError as error:
        raise UsageError(f"{type(net).__name__} cannot be written as ONNX: {_first_cause(error)}") from error
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter warns of its own parts, and logs which of torchvision's it skips, whatever it is given."""
    logger = logging.getLogger(_SAYS_WHAT_IT_SKIPS)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_cause(error: BaseException) -> str:
    """The first line of what went wrong at the bottom; torch's own message tells how to report a bug of torch."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]
