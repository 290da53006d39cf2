"""Quantising a network in place, and what an optimizer needs to know of it."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from uumamba.quantization.layers import (
    INPUT,
    TRANSPOSED,
    candidates,
    channel_axis,
    other_matrices,
    quantize_input,
    quantized_layers,
)
from uumamba.quantization.levels import check_bits
from uumamba.quantization.overrides import bits_of, called, leave_out, listed, refuse_idle, width_of
from uumamba.quantization.quantizers import WeightQuantizer
from uumamba.runtime.errors import UsageError


def quantize_(
    net: nn.Module,
    *,
    weight_bits: int | None = 4,
    act_bits: int | None = 4,
    first_last_bits: int | None = 8,
    per_channel: bool = False,
    overrides: Mapping[str, int | None] | None = None,
    start_step: int = 0,
) -> nn.Module:
    """Make a network learn with rounded weights and activations, in place.

    Every ``Linear``, ``Conv1d`` to ``Conv3d`` and their transposed kinds gets a :class:`WeightQuantizer` as a
    parametrization of ``weight``, wherever the weight is used, and an :class:`ActivationQuantizer` before its input.
    Biases, norms and other parameters stay as they are; so do the matrices of attention (all but its ``out_proj``),
    recurrent layers, ``Bilinear`` and embeddings, of which one warning tells. Weights keep their parameter objects;
    scales are new parameters, so make the optimizer afterwards, with :func:`scale_groups` where scales shall not decay.
    Start from trained weights, then :func:`uumamba.quantization.calibrate`.

    Where several layers see the image or give the answer, name them: in our U-Nets the stem has two such convolutions
    and deep supervision several heads, ``overrides={"encoder.stem.0.*": 8, "decoder.seg_layers.*": 8}``.

    Mamba blocks, told by their parts, have all projections quantised; the depthwise convolution in them its weight
    alone. With ``weight_bits=7, act_bits=None, per_channel=True, start_step=2000`` this is QT-DoG.

    Args:
        net: the network; changed.
        weight_bits: 2 to 8; None leaves weights alone.
        act_bits: 2 to 8; None leaves activations alone.
        first_last_bits: of the first and the last layer in the order of ``net.named_modules()``, where they are
            quantised at all, which is every layer of a network of one or two; None treats them as the others.
        per_channel: a scale for each output channel of a weight; not for transposed convolutions of several groups,
            no axis of whose weight holds the output channels. Activations always have one.
        overrides: bits by name, with wildcards, for weight and activation alike; None leaves the layer in full
            precision, and lets the warning pass over a module it would name. The first that matches counts.
        start_step: weights pass as they are for so many optimizer steps; needs :func:`count_steps`.

    Returns:
        The same network.

    Raises:
        UsageError: bits are outside 2 to 8, nothing is to be quantised, the network is quantised already, an override
            matches no layer, activations shall wait, a weight has no values yet or is computed from other parameters
            (weight or spectral norm), or a transposed convolution of several groups shall be rounded ``per_channel``.

    Warns:
        UserWarning: modules keep matrices in full precision that were not named in ``overrides``; not where weights are
            left alone.

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
    overrides = overrides or {}
    _check(net, weight_bits, act_bits, first_last_bits, overrides, start_step)
    layers, others = candidates(net), other_matrices(net)
    names = list(layers)
    refuse_idle(overrides, names, list(others))
    of_weights, of_inputs = (
        [None] * len(names) if bits is None else bits_of(names, bits, first_last_bits, overrides)
        for bits in (weight_bits, act_bits)
    )
    if not any(width is not None for width in (*of_weights, *of_inputs)):
        raise UsageError("The overrides leave every layer in full precision, so nothing would be quantised.")
    rounded = {name: layer for (name, layer), width in zip(layers.items(), of_weights, strict=True) if width}
    _refuse_other_weights(rounded)
    if per_channel:
        _refuse_mixed_channels(rounded, names)
    _warn_of({name: each for name, each in others.items() if width_of(name, weight_bits, overrides)}, names)
    for (name, layer), weight_width, input_width in zip(layers.items(), of_weights, of_inputs, strict=True):
        if weight_width is not None:
            axis = channel_axis(layer) if per_channel else None
            weight: Any = layer.weight
            quantizer = WeightQuantizer(weight, weight_width, channel_axis=axis, start_step=start_step)
            parametrize.register_parametrization(layer, "weight", quantizer.to(weight.device))
        if input_width is not None:
            quantize_input(net, name, input_width)
    return net


def quantizer_scales(net: nn.Module) -> dict[str, nn.Parameter]:
    """The scales that learn, by the name of their layer and what they round; a layer's weight comes before its input.

    Example:
        >>> list(quantizer_scales(quantize_(nn.Sequential(nn.Linear(2, 2)))))
        ['0.weight', '0.input']
    """
    found = {}
    for layer in quantized_layers(net):
        for what, quantizer in (("weight", layer.weight), ("input", layer.input)):
            if quantizer is not None:
                found[f"{layer.name}.{what}".removeprefix(".")] = quantizer.scale
    return found


def holds_scales(state: Iterable[str]) -> bool:
    """Whether a ``state_dict``, or the names in it, is that of a quantised network.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> holds_scales(net.state_dict()), holds_scales(quantize_(net, weight_bits=None).state_dict())
        (False, True)
    """
    return any(name.endswith(("parametrizations.weight.0.scale", f"{INPUT}.scale")) for name in state)


def scale_groups(net: nn.Module) -> list[dict[str, Any]]:
    """Two parameter groups: everything but the scales, and the scales without weight decay.

    Example:
        >>> [len(group["params"]) for group in scale_groups(quantize_(nn.Sequential(nn.Linear(2, 2))))]
        [2, 2]
    """
    scales = list(quantizer_scales(net).values())
    known = {id(scale) for scale in scales}
    others = [param for param in net.parameters() if id(param) not in known]
    return [{"params": others}, {"params": scales, "weight_decay": 0.0}]


def count_steps(net: nn.Module, optimizer: Optimizer) -> RemovableHandle:
    """Let every step of ``optimizer`` count for the weights that wait since ``quantize_(..., start_step=...)``.

    What is left to wait is part of the network's ``state_dict``; register anew after a checkpoint was loaded.

    Raises:
        UsageError: no weight waits, and none did.

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
    waiting = [
        (layer.weight, layer.full_weight)
        for layer in quantized_layers(net)
        if layer.weight is not None and layer.weight.steps_left is not None
    ]
    if not waiting:
        raise UsageError("No weight of this network waits; call quantize_(net, ..., start_step=...) first.")

    def count(*_: Any) -> None:
        for quantizer, weight in waiting:
            quantizer.count_step(weight)

    return optimizer.register_step_post_hook(count)


def _refuse_other_weights(layers: Mapping[str, nn.Module]) -> None:
    """Packing and export store a weight that is a parameter; one that another parametrization computes is not."""
    for name, layer in layers.items():
        weight: Any = getattr(layer, "weight", None)
        if nn.parameter.is_lazy(weight):
            raise UsageError(
                f"The weight of {called(name)} has no shape yet; pass one batch through the network, then quantise."
            )
        if parametrize.is_parametrized(layer, "weight") or not isinstance(weight, nn.Parameter):
            raise UsageError(
                f"The weight of {called(name)} is computed from other parameters, as weight norm and spectral norm do; "
                f"remove that first, or leave the layer in full precision with overrides={{{name!r}: None}}."
            )


def _refuse_mixed_channels(layers: Mapping[str, nn.Module], names: Sequence[str]) -> None:
    """A quiet group would share its scales with a loud one, and be rounded to nothing."""
    mixed = [name for name, layer in layers.items() if isinstance(layer, TRANSPOSED) and layer.groups > 1]
    if mixed:
        raise UsageError(
            f"per_channel is a scale for each output channel, and no axis of the weight of {listed(mixed)} holds "
            "those, as in any transposed convolution of several groups; leave it in full precision with "
            f"{leave_out(mixed, names)}, or quantise without per_channel."
        )


def _warn_of(modules: Mapping[str, nn.Module], names: Sequence[str]) -> None:
    """Say which modules keep matrices in full precision beside the layers of these names."""
    if modules:
        named = listed([f"{called(name)} ({type(module).__name__})" for name, module in modules.items()])
        warnings.warn(
            f"Matrices of {named} stay in full precision: what is rounded are linear layers and convolutions. If that "
            f"is meant, say so with {leave_out(list(modules), [*names, *modules])}.",
            stacklevel=3,
        )


def _check(
    net: nn.Module,
    weight_bits: int | None,
    act_bits: int | None,
    first_last_bits: int | None,
    overrides: Mapping[str, int | None],
    start_step: int,
) -> None:
    widths = {"weight_bits": weight_bits, "act_bits": act_bits, "first_last_bits": first_last_bits}
    for what, bits in (widths | {f"overrides[{name!r}]": bits for name, bits in overrides.items()}).items():
        if bits is not None:
            check_bits(bits, what)
    if weight_bits is None and act_bits is None:
        raise UsageError("Neither weight_bits nor act_bits is given, so nothing would be quantised.")
    if start_step < 0 or (start_step and (act_bits is not None or weight_bits is None)):
        raise UsageError(
            f"start_step={start_step} makes weights alone wait, for a number of steps that is not negative; give "
            "weight_bits and act_bits=None."
        )
    if not candidates(net):
        raise UsageError(f"{type(net).__name__} has no linear layer or convolution to quantise.")
    if any(quantized_layers(net)):
        raise UsageError("This network is quantised already; build it anew to quantise it otherwise.")
