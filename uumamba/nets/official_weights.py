"""Recognition of a released network by its state dict."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from uumamba.runtime.errors import UsageError, require

Weights = Mapping[str, Tensor]
# Patterns of the released code's names in order, each with its replacement.
_RENAMED = (
    (r"_orig_mod\.", ""),
    (r"^(module\.)+", ""),
    (r"^decoder\.encoder\.", "encoder."),
    # Bottleneck of the legacy layout.
    (r"^ln\.", "mamba_layer.norm."),
    (r"^mamba\.", "mamba_layer.mamba."),
    # A block contains its convolution, optionally dropout, which has no weights, and its norm, in this order.
    (r"\.all_modules\.0\.", ".conv."),
    (r"\.all_modules\.\d+\.", ".norm."),
)


def remove_duplicates(weights: object) -> dict[str, Tensor]:
    """Return every weight once, under its name in ``uumamba.nets``.

    Prefixes of wrappers (``module.``, ``_orig_mod.``) are removed. A released network has several names for some
    weights (the decoder's reference to the encoder, ``all_modules`` of a block); their values must be equal.

    Raises:
        UsageError: the argument has no named tensors, or the values for two names of a weight differ.

    Example:
        >>> weight = torch.ones(1)
        >>> list(remove_duplicates({"encoder.a.conv.weight": weight, "decoder.encoder.a.conv.weight": weight}))
        ['encoder.a.conv.weight']
    """
    expected = "a state dict of named tensors"
    if not isinstance(weights, Mapping) or not weights:
        got = "no weight" if isinstance(weights, Mapping) else type(weights).__name__
        raise UsageError("weights", got=got, expected=expected, fix="give a checkpoint file of a trained network")
    kept: dict[str, Tensor] = {}
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"weights.{key}", got=type(value).__name__, expected=expected)
        name = _translate_name(str(key))
        require(
            _has_equal_values(kept.setdefault(name, value), value),
            f"weights.{key}",
            got="other values",
            expected=f"the values of {name}, another name of this weight",
            fix="load an unchanged file, or remove one of the two weights",
        )
    return kept


def recognise(weights: Weights) -> tuple[str, dict[str, Any]]:
    """Determine network and constructor arguments from the weights.

    The names and shapes of the weights are sufficient.

    Args:
        weights: result of ``remove_duplicates``.

    Returns:
        The name of the class in ``uumamba.nets`` and the arguments of its constructor: ``strides`` only in the legacy
        layout, ``patch_size`` never.

    Raises:
        UsageError: the weights do not belong to a U-Mamba of either layout.
    """
    legacy = _count_parts(weights, "decoder.transpconvs") > 0
    require(
        legacy or _count_parts(weights, "decoder.upsample_layers"),
        "weights",
        got=", ".join(list(weights)[:3]),
        expected="weights named decoder.upsample_layers (U-Mamba) or decoder.transpconvs (UU-Mamba)",
    )
    blocks, first_conv = (".blocks", "conv1.conv") if legacy else ("", "conv1")
    stages = _count_parts(weights, "encoder.stages")
    shapes = [_read_shape(weights, f"encoder.stages.{stage}{blocks}.0.{first_conv}.weight") for stage in range(stages)]
    arguments: dict[str, Any] = {
        "features": tuple(shape[0] for shape in shapes),
        "kernel_sizes": tuple(shape[2:] for shape in shapes),
        "encoder_blocks": tuple(_count_parts(weights, f"encoder.stages.{stage}{blocks}") for stage in range(stages)),
        "decoder_blocks": tuple(
            _count_parts(weights, f"decoder.stages.{stage}{blocks}") for stage in range(stages - 1)
        ),
    }
    heads = _read_shape(weights, f"decoder.seg_layers.{stages - 2}.weight")
    arguments |= {"spatial_dims": len(heads) - 2, "out_channels": heads[0]}
    arguments["deep_supervision"] = _count_parts(weights, "decoder.seg_layers") == stages - 1
    if legacy:
        # The kernel of a transposed convolution equals its stride; the first stage has stride 1.
        steps = [_read_shape(weights, f"decoder.transpconvs.{stage}.weight")[2:] for stage in range(stages - 1)]
        arguments["strides"] = ((1,) * len(steps[0]), *reversed(steps))
        arguments["in_channels"] = _read_shape(weights, "encoder.stem.convs.0.conv.weight")[1]
    else:
        stem_blocks = arguments["stem_blocks"] = _count_parts(weights, "encoder.stem")
        first = "encoder.stem.0.conv1.weight" if stem_blocks else "encoder.stages.0.0.conv1.weight"
        width, joined = _read_shape(weights, f"decoder.stages.{stages - 2}.0.conv1.weight")[:2]
        arguments |= {"in_channels": _read_shape(weights, first)[1], "full_resolution_skip": joined == 2 * width}
    kind = "ResEncUNet"
    if any(key.startswith("mamba_layer.") for key in weights):
        kind = "UMambaBot"
    elif _count_parts(weights, "encoder.mamba_layers"):
        kind = "UMambaEnc"
    return f"Legacy{kind}" if legacy else kind, arguments


def _translate_name(key: str) -> str:
    """Translate a weight's name from the released code to ``uumamba.nets``.

    Example:
        >>> _translate_name("module._orig_mod.decoder.encoder.stem.1.conv1.all_modules.0.weight")
        'encoder.stem.1.conv1.conv.weight'
        >>> _translate_name("ln.weight"), _translate_name("mamba.D")
        ('mamba_layer.norm.weight', 'mamba_layer.mamba.D')
    """
    for released, own in _RENAMED:
        key = re.sub(released, own, key)
    return key


def _has_equal_values(one: Tensor, other: Tensor) -> bool:
    """Compare shape, type and values; NaN equals NaN.

    The weights of a diverged network are NaN.
    """
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
    )


def _count_parts(weights: Weights, prefix: str) -> int:
    """Count the numbered parts under a prefix."""
    rest = (key.removeprefix(f"{prefix}.").partition(".")[0] for key in weights if key.startswith(f"{prefix}."))
    return len({number for number in rest if number.isdigit()})


def _read_shape(weights: Weights, key: str) -> tuple[int, ...]:
    shape = tuple(weights[key].shape) if key in weights else ()
    require(
        len(shape) in (4, 5), f"weights.{key}", got=shape or "none", expected="the weight of a 2-D or 3-D convolution"
    )
    return shape
