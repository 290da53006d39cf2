"""In-place quantization of a network, and parameter groups of the scales."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from uumamba.quantization.layers import (
    INPUT,
    OTHER_KINDS,
    TRANSPOSED,
    channel_axis,
    find_modules,
    quantize_input,
    quantized_layers,
)
from uumamba.quantization.overrides import (
    assign_bits,
    check_overrides,
    find_width,
    join_names,
    parameter_name,
    suggest_overrides,
)
from uumamba.quantization.quantizers import FROM_FIRST_STEP, WeightQuantizer
from uumamba.runtime.errors import require
from uumamba.runtime.options import Bits, NonNegativeInt, check_options


@check_options
def quantize_(
    net: nn.Module,
    *,
    weight_bits: Bits | None = 4,
    act_bits: Bits | None = 4,
    first_last_bits: Bits | None = 8,
    per_channel: bool = False,
    overrides: Mapping[str, Bits | None] = MappingProxyType({}),
    start_step: NonNegativeInt = FROM_FIRST_STEP,
) -> nn.Module:
    """Quantize weights and activations of a network in place.

    Every ``Linear``, ``Conv1d`` to ``Conv3d`` and transposed convolution gets a :class:`WeightQuantizer` as a
    parametrization of ``weight``, and an :class:`ActivationQuantizer` on its input. Biases, norms and other parameters
    stay in full precision. Matrices of attention (except ``out_proj``), recurrent layers, ``Bilinear`` and embeddings
    also stay in full precision, with one warning. Weights keep their parameter objects. Scales are new parameters, so
    create the optimizer afterwards, with :func:`scale_groups` to exempt scales from weight decay. Start from trained
    weights, then call :func:`uumamba.quantization.calibrate`.

    If several layers read the image or return logits, set their widths by name. This project's U-Nets have two such
    convolutions in the stem, and several heads under deep supervision:
    ``overrides={"encoder.stem.0.*": 8, "decoder.seg_layers.*": 8}``.

    Mamba blocks are recognised by their projections. All projections are quantized; of the depthwise convolution only
    the weight is quantized. ``weight_bits=7, act_bits=None, per_channel=True, start_step=2000`` is QT-DoG.

    Args:
        net: the network, changed in place.
        weight_bits: 2 to 8; None keeps weights in full precision.
        act_bits: 2 to 8; None keeps activations in full precision.
        first_last_bits: bit width of the first and last layer in the order of ``net.named_modules()``, if they are
            quantized; in a network of one or two layers this is every layer. None for the width of the other layers.
        per_channel: one scale per output channel of a weight; not possible for transposed convolutions of several
            groups, whose weight has no axis for all output channels. Activations always have a single scale.
        overrides: bit width of weight and activation by name, with wildcards; None keeps a layer in full precision, or
            silences the warning for a module. The first match counts.
        start_step: optimizer steps before weights are rounded; needs :func:`count_steps`.

    Returns:
        The same network.

    Raises:
        UsageError: a bit width is outside 2 to 8, nothing would be quantized, the network is already quantized, an
            override matches no layer, ``start_step`` is set with activations, a weight is not initialized or is
            computed from other parameters (weight norm or spectral norm), or ``per_channel`` is set for a transposed
            convolution of several groups.

    Warns:
        UserWarning: matrices stay in full precision and ``overrides`` does not match their modules; not if
            ``weight_bits`` is None.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> _ = quantize_(net, weight_bits=3, act_bits=None)
        >>> [layer.weight.bits for layer in quantized_layers(net)]
        [8, 3, 8]
        >>> len(net[2].weight.unique()) <= 8
        True

    References:
        Esser et al., *Learned Step Size Quantization*, ICLR 2020, arXiv:1902.08153.
        Javed et al., *QT-DoG: Quantization-aware Training for Domain Generalization*, ICML 2025, arXiv:2410.06020.
        Differs from the papers: see :func:`fake_quantize` and :class:`ActivationQuantizer`.
    """
    _check_together(net, weight_bits, act_bits, start_step)
    layers, others = find_modules(net), find_modules(net, OTHER_KINDS)
    names = list(layers)
    check_overrides(overrides, names, list(others))
    weight_widths, input_widths = (
        [None] * len(names) if bits is None else assign_bits(names, bits, first_last_bits, overrides)
        for bits in (weight_bits, act_bits)
    )
    require(any((*weight_widths, *input_widths)), "overrides", got=overrides, expected="at least one layer to quantize")
    _check_weights(
        {name: layer for (name, layer), width in zip(layers.items(), weight_widths, strict=True) if width},
        names,
        per_channel=per_channel,
    )
    _warn_about_others({name: each for name, each in others.items() if find_width(name, weight_bits, overrides)}, names)
    for (name, layer), weight_width, input_width in zip(layers.items(), weight_widths, input_widths, strict=True):
        if weight_width is not None:
            axis = channel_axis(layer) if per_channel else None
            weight: Any = layer.weight
            quantizer = WeightQuantizer(weight, weight_width, channel_axis=axis, start_step=start_step)
            parametrize.register_parametrization(layer, "weight", quantizer.to(weight.device))
        if input_width is not None:
            quantize_input(net, name, input_width)
    return net


@check_options
def quantizer_scales(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the learned scales by layer and part, weight before input.

    Args:
        net: a network after :func:`quantize_`.

    Example:
        >>> list(quantizer_scales(quantize_(nn.Sequential(nn.Linear(2, 2)))))
        ['0.weight', '0.input']
    """
    return {
        parameter_name(layer.name, part): quantizer.scale
        for layer in quantized_layers(net)
        for part, quantizer in (("weight", layer.weight), ("input", layer.input))
        if quantizer is not None
    }


def holds_scales(state: Iterable[str]) -> bool:
    """Return whether tensor names are from a quantized network's ``state_dict``.

    Args:
        state: names of tensors, such as a ``state_dict``.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> holds_scales(net.state_dict()), holds_scales(quantize_(net, weight_bits=None).state_dict())
        (False, True)
    """
    return any(name.endswith(("parametrizations.weight.0.scale", f"{INPUT}.scale")) for name in state)


@check_options
def scale_groups(net: nn.Module) -> list[dict[str, Any]]:
    """Return two parameter groups: other parameters, and scales without weight decay.

    Args:
        net: a network after :func:`quantize_`.

    Example:
        >>> [len(group["params"]) for group in scale_groups(quantize_(nn.Sequential(nn.Linear(2, 2))))]
        [2, 2]
    """
    scales = list(quantizer_scales(net).values())
    ids = {id(scale) for scale in scales}
    others = [param for param in net.parameters() if id(param) not in ids]
    return [{"params": others}, {"params": scales, "weight_decay": 0.0}]


@check_options
def count_steps(net: nn.Module, optimizer: Optimizer) -> RemovableHandle:
    """Count an optimizer's steps for ``quantize_(..., start_step=...)``.

    The number of remaining steps is part of the network's ``state_dict``. Call this function again after loading a
    checkpoint into a new network.

    Args:
        net: a network after :func:`quantize_` with ``start_step``.
        optimizer: the optimizer whose steps count.

    Raises:
        UsageError: the network was quantized without ``start_step``.

    Example:
        >>> import torch
        >>> net = quantize_(nn.Sequential(nn.Linear(2, 2)), weight_bits=2, act_bits=None, start_step=1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> _ = count_steps(net, optimizer)
        >>> len(net[0].weight.unique())
        4
        >>> optimizer.step()
        >>> len(net[0].weight.unique()) <= 4, int(net[0].parametrizations.weight[0].steps_left)
        (True, 0)
    """
    delayed = [
        (layer.weight, layer.full_weight)
        for layer in quantized_layers(net)
        if layer.weight is not None and layer.weight.steps_left is not None
    ]
    require(
        delayed,
        "net",
        got=type(net).__name__,
        expected="a network quantized with start_step",
        fix="call quantize_(net, ..., start_step=...) first",
    )

    def count(*_: Any) -> None:
        for quantizer, weight in delayed:
            quantizer.count_step(weight)

    return optimizer.register_step_post_hook(count)


def _check_weights(layers: Mapping[str, nn.Module], names: Sequence[str], *, per_channel: bool) -> None:
    """Raise if a weight cannot be quantized.

    Packing and export need a parameter; ``per_channel`` needs an axis of all output channels.
    """
    for name, layer in layers.items():
        weight: Any = getattr(layer, "weight", None)
        key = parameter_name(name, "weight")
        require(
            not nn.parameter.is_lazy(weight),
            key,
            got="no shape",
            expected="an initialized weight",
            fix="pass one batch through the network first",
        )
        require(
            isinstance(weight, nn.Parameter) and not parametrize.is_parametrized(layer, "weight"),
            key,
            got="a tensor computed from other parameters",
            expected="a parameter",
            fix=f"remove weight norm or spectral norm, or set overrides={{{name!r}: None}}",
        )
    mixed = [name for name, layer in layers.items() if isinstance(layer, TRANSPOSED) and layer.groups > 1]
    require(
        not (per_channel and mixed),  # groups would share scales, and small weights of one group would become 0
        "per_channel",
        got=f"a transposed convolution of several groups: {join_names(mixed)}",
        expected="weights with one axis for all output channels",
        fix=f"set {suggest_overrides(mixed, names)}, or per_channel=False",
    )


def _warn_about_others(modules: Mapping[str, nn.Module], names: Sequence[str]) -> None:
    """Warn about modules with matrices in full precision."""
    if modules:
        named = join_names([f"{name or 'the network'} ({type(module).__name__})" for name, module in modules.items()])
        warnings.warn(
            f"Matrices of {named} stay in full precision: only linear layers and convolutions are rounded. To silence "
            f"this warning, set {suggest_overrides(list(modules), [*names, *modules])}.",
            stacklevel=4,
        )


def _check_together(net: nn.Module, weight_bits: int | None, act_bits: int | None, start_step: int) -> None:
    require(weight_bits or act_bits, "weight_bits", got=None, expected="2 to 8 bits in weight_bits or act_bits")
    require(
        start_step == 0 or act_bits is None,
        "start_step",
        got=start_step,
        expected="0, or a number above 0 with act_bits=None",
    )
    name = type(net).__name__
    require(find_modules(net), "net", got=name, expected="a network with linear layers or convolutions")
    require(
        not any(quantized_layers(net)),
        "net",
        got=f"a quantized {name}",
        expected="a network in full precision",
        fix="build the network again",
    )
