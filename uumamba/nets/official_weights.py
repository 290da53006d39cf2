"""What the state dict of a released network says about the network: its layout, widths, kernels and blocks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uumamba.runtime.errors import UsageError

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Found:
    """A network recognised from its weights.

    Attributes:
        network: name of the class in ``uumamba.nets``.
        arguments: what its constructor takes; ``strides`` only in the older layout, ``patch_size`` never.
    """

    network: str
    arguments: dict[str, Any]


def without_duplicates(weights: object) -> dict[str, Tensor]:
    """Name every weight once, as our networks do.

    Wrappers' prefixes (``module.``, ``_orig_mod.``) are dropped; so are the second names that a released network gives
    to the same weights (the decoder's reference to the encoder, ``all_modules`` of a block), once seen to be equal.

    Raises:
        UsageError: these are no named tensors, or two names of one weight disagree.

    Example:
        >>> weight = torch.ones(1)
        >>> list(without_duplicates({"encoder.a.conv.weight": weight, "decoder.encoder.a.conv.weight": weight}))
        ['encoder.a.conv.weight']
    """
    if not isinstance(weights, Mapping) or not weights:
        raise UsageError("the checkpoint should hold a state dict of named tensors; it does not.")
    kept: dict[str, Tensor] = {}
    first_name: dict[str, str] = {}
    for key, value in weights.items():
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            raise UsageError(f"the state dict should hold plain tensors; found {type(value).__name__} at {key!r}.")
        name = _our_name(str(key))
        if name not in kept:
            kept[name], first_name[name] = value, key
        elif not _equal(kept[name], value):
            raise UsageError(
                f"{first_name[name]} and {key} are two names of one weight but differ; the file was changed after "
                "training, so get an unchanged one or remove one of the two."
            )
    return kept


def recognise(weights: Weights) -> Found:
    """Read layout, widths, kernels and block counts from names and shapes.

    Args:
        weights: as ``without_duplicates`` gives them.

    Raises:
        UsageError: this is no U-Mamba of either layout.
    """
    legacy = _has(weights, "decoder.transpconvs")
    if not legacy and not _has(weights, "decoder.upsample_layers"):
        raise UsageError(
            "these are weights of no U-Mamba: neither decoder.upsample_layers (released since March 2024) nor "
            f"decoder.transpconvs (before, and UU-Mamba) is there; found {', '.join(list(weights)[:3])} and so on."
        )
    blocks, first_conv = (".blocks", "conv1.conv") if legacy else ("", "conv1")
    stages = _count(weights, "encoder.stages")
    if stages < 2:
        raise UsageError(f"encoder.stages should hold 2 stages or more; found {stages}.")
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
    arguments |= _of_the_older_layout(weights, stages) if legacy else _of_the_current_layout(weights, stages)
    return Found(_network(weights, legacy), arguments)


def _of_the_older_layout(weights: Weights, stages: int) -> dict[str, Any]:
    """A transposed convolution's kernel is its stride, and the first stage has none."""
    steps = [_shape(weights, f"decoder.transpconvs.{stage}.weight")[2:] for stage in range(stages - 1)]
    strides = ((1,) * len(steps[0]), *reversed(steps))
    return {"strides": strides, "in_channels": _shape(weights, "encoder.stem.convs.0.conv.weight")[1]}


def _of_the_current_layout(weights: Weights, stages: int) -> dict[str, Any]:
    stem_blocks = _count(weights, "encoder.stem")
    first = "encoder.stem.0.conv1.weight" if stem_blocks else "encoder.stages.0.0.conv1.weight"
    width, joined = _shape(weights, f"decoder.stages.{stages - 2}.0.conv1.weight")[:2]
    return {
        "stem_blocks": stem_blocks,
        "in_channels": _shape(weights, first)[1],
        "full_resolution_skip": joined == 2 * width,
    }


def _network(weights: Weights, legacy: bool) -> str:
    if _has(weights, "mamba_layer"):
        return "LegacyUMambaBot" if legacy else "UMambaBot"
    if _has(weights, "encoder.mamba_layers"):
        return "LegacyUMambaEnc" if legacy else "UMambaEnc"
    if not legacy:
        return "ResEncUNet"
    raise UsageError("these weights have the older layout but no Mamba layer, which is none of the released networks.")


def _our_name(key: str) -> str:
    """One name for the names that the released code gives to one weight.

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


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same values; a network that diverged may hold NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or torch.allclose(one.double(), other.double(), rtol=0, atol=0, equal_nan=True)


def _has(weights: Weights, prefix: str) -> bool:
    return any(key.startswith(f"{prefix}.") for key in weights)


def _count(weights: Weights, prefix: str) -> int:
    """How many numbered parts stand under a prefix."""
    rest = (key.removeprefix(f"{prefix}.").partition(".")[0] for key in weights if key.startswith(f"{prefix}."))
    return len({number for number in rest if number.isdigit()})


def _shape(weights: Weights, key: str) -> tuple[int, ...]:
    if key not in weights or weights[key].ndim not in (4, 5):
        found = f"found shape {tuple(weights[key].shape)}" if key in weights else "it is missing"
        raise UsageError(f"{key} should be a convolution's weight in 2-D or 3-D; {found}.")
    return tuple(weights[key].shape)
