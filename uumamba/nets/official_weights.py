"""Layout, widths, kernels and blocks of a released network, read from its state dict."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uumamba.runtime.errors import UsageError, require

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Found:
    """A network recognised from its weights.

    Attributes:
        network: name of the class in ``uumamba.nets``.
        arguments: of its constructor; ``strides`` only in the legacy layout, ``patch_size`` never.
    """

    network: str
    arguments: dict[str, Any]


def without_duplicates(weights: object) -> dict[str, Tensor]:
    """Return every weight once, under its name in our networks.

    Prefixes of wrappers (``module.``, ``_orig_mod.``) are dropped, and so are a released network's second names of the
    same weights (the decoder's reference to the encoder, ``all_modules`` of a block) after a check for equality.

    Raises:
        UsageError: the argument holds no named tensors, or two names of one weight have different values.

    Example:
        >>> weight = torch.ones(1)
        >>> list(without_duplicates({"encoder.a.conv.weight": weight, "decoder.encoder.a.conv.weight": weight}))
        ['encoder.a.conv.weight']
    """
    expected = "a state dict of named tensors"
    if not isinstance(weights, Mapping) or not weights:
        raise UsageError("weights", got="none", expected=expected)
    kept: dict[str, Tensor] = {}
    for key, value in weights.items():
        if not isinstance(value, Tensor):
            raise UsageError(f"weights.{key}", got=type(value).__name__, expected=expected)
        first = kept.setdefault(_our_name(str(key)), value)
        require(
            _is_equal(first, value),
            f"weights.{key}",
            got="other values",
            expected=f"those of {_our_name(str(key))}, the same weight",
            fix="get a file that was not changed after training, or remove one of the two",
        )
    return kept


def recognise(weights: Weights) -> Found:
    """Return the network and its constructor's arguments, read from names and shapes of weights.

    Args:
        weights: from ``without_duplicates``.

    Raises:
        UsageError: the weights are of no U-Mamba of either layout.
    """
    legacy = _count(weights, "decoder.transpconvs") > 0
    require(
        legacy or _count(weights, "decoder.upsample_layers"),
        "weights",
        got=", ".join(list(weights)[:3]),
        expected="decoder.upsample_layers (U-Mamba since March 2024) or decoder.transpconvs (before, and UU-Mamba)",
    )
    blocks, first_conv = (".blocks", "conv1.conv") if legacy else ("", "conv1")
    stages = _count(weights, "encoder.stages")
    shapes = [_shape(weights, f"encoder.stages.{stage}{blocks}.0.{first_conv}.weight") for stage in range(stages)]
    arguments: dict[str, Any] = {
        "features": tuple(shape[0] for shape in shapes),
        "kernel_sizes": tuple(shape[2:] for shape in shapes),
        "encoder_blocks": tuple(_count(weights, f"encoder.stages.{stage}{blocks}") for stage in range(stages)),
        "decoder_blocks": tuple(_count(weights, f"decoder.stages.{stage}{blocks}") for stage in range(stages - 1)),
    }
    heads = _shape(weights, f"decoder.seg_layers.{stages - 2}.weight")
    arguments |= {"spatial_dims": len(heads) - 2, "out_channels": heads[0]}
    arguments["deep_supervision"] = _count(weights, "decoder.seg_layers") == stages - 1
    if legacy:
        # The kernel of a transposed convolution is its stride; the first stage has none.
        steps = [_shape(weights, f"decoder.transpconvs.{stage}.weight")[2:] for stage in range(stages - 1)]
        arguments["strides"] = ((1,) * len(steps[0]), *reversed(steps))
        arguments["in_channels"] = _shape(weights, "encoder.stem.convs.0.conv.weight")[1]
    else:
        stem_blocks = arguments["stem_blocks"] = _count(weights, "encoder.stem")
        first = "encoder.stem.0.conv1.weight" if stem_blocks else "encoder.stages.0.0.conv1.weight"
        width, joined = _shape(weights, f"decoder.stages.{stages - 2}.0.conv1.weight")[:2]
        arguments |= {"in_channels": _shape(weights, first)[1], "full_resolution_skip": joined == 2 * width}
    kind = "ResEncUNet"
    if any(key.startswith("mamba_layer.") for key in weights):
        kind = "UMambaBot"
    elif _count(weights, "encoder.mamba_layers"):
        kind = "UMambaEnc"
    return Found(f"Legacy{kind}" if legacy else kind, arguments)


def _our_name(key: str) -> str:
    """Return our name of a weight for any of its names in the released code.

    Example:
        >>> _our_name("module._orig_mod.decoder.encoder.stem.1.conv1.all_modules.0.weight")
        'encoder.stem.1.conv1.conv.weight'
        >>> _our_name("ln.weight"), _our_name("mamba.D")
        ('mamba_layer.norm.weight', 'mamba_layer.mamba.D')
    """
    name = re.sub(r"^(module\.)+", "", key.replace("_orig_mod.", ""))
    name = re.sub(r"^decoder\.encoder\.", "encoder.", name)
    name = re.sub(r"^ln\.", "mamba_layer.norm.", name)  # the older layout's bottleneck
    name = re.sub(r"^mamba\.", "mamba_layer.mamba.", name)
    # A block lists its convolution first, then dropout if any, which has no weights, then the norm.
    return re.sub(r"\.all_modules\.(\d+)\.", lambda found: ".conv." if found[1] == "0" else ".norm.", name)


def _is_equal(one: Tensor, other: Tensor) -> bool:
    """Compare shape, type and values; NaN equals NaN, for a network that diverged."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _count(weights: Weights, prefix: str) -> int:
    """Count the numbered parts under a prefix."""
    rest = (key.removeprefix(f"{prefix}.").partition(".")[0] for key in weights if key.startswith(f"{prefix}."))
    return len({number for number in rest if number.isdigit()})


def _shape(weights: Weights, key: str) -> tuple[int, ...]:
    shape = tuple(weights[key].shape) if key in weights else ()
    require(len(shape) in (4, 5), f"weights.{key}", got=shape or "none", expected="a 2-D or 3-D convolution's weight")
    return shape
