"""Low-bit training with learned scales, packed weights and ONNX export."""

from uumamba.quantization.calibration import calibrate
from uumamba.quantization.disorder import gradient_disorder
from uumamba.quantization.fake_quantize import fake_quantize
from uumamba.quantization.gaqat import GAQAT, Window
from uumamba.quantization.layers import QuantizedLayer, quantized_layers
from uumamba.quantization.onnx_export import export_onnx
from uumamba.quantization.packing import PackedWeight, packed_bytes, packed_weights
from uumamba.quantization.quantize import count_steps, holds_scales, quantize_, quantizer_scales, scale_groups
from uumamba.quantization.quantizers import ActivationQuantizer, WeightQuantizer

__all__ = [
    "GAQAT",
    "ActivationQuantizer",
    "PackedWeight",
    "QuantizedLayer",
    "WeightQuantizer",
    "Window",
    "calibrate",
    "count_steps",
    "export_onnx",
    "fake_quantize",
    "gradient_disorder",
    "holds_scales",
    "packed_bytes",
    "packed_weights",
    "quantize_",
    "quantized_layers",
    "quantizer_scales",
    "scale_groups",
]


def __dir__() -> list[str]:
    return __all__
