"""Giving the activations of a quantised network their scales."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from uumamba.quantization.layers import candidates, quantized_layers
from uumamba.quantization.overrides import called, leave_out, listed
from uumamba.quantization.quantizers import ActivationQuantizer
from uumamba.runtime.errors import UsageError


def calibrate(
    net: nn.Module, batches: Iterable[Any], *, run: Callable[[nn.Module, Any], Any] | None = None
) -> nn.Module:
    r"""Set scale and range of every activation quantiser from what passes it.

    The scale becomes :math:`s_0 = 2\,\mathrm{mean}|v| / \sqrt{Q_p}` over all batches; the range is without sign where
    no value is negative. Meanwhile activations pass unrounded and weights as they stand. The network runs without
    gradients in the mode it stands in: in evaluation mode batch norms and dropout do not notice, in training mode heads
    that exist for training alone are reached. Scales that were there are replaced. Calibrate before a data-parallel
    wrapper is put around, so that all ranks get the same.

    Args:
        net: a network after :func:`uumamba.quantization.quantize_`.
        batches: a few batches of training data, each an input of the network.
        run: ``run(net, batch)`` does one forward pass; ``net(batch)`` without it.

    Returns:
        The same network.

    Raises:
        UsageError: quantised inputs are never reached, or one is zero throughout or not finite; or there is none; or
            there is no batch, or one is a list or a mapping and there is no ``run``.

    Example:
        >>> from uumamba.quantization import quantize_
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2))
        >>> _ = calibrate(quantize_(net), [torch.tensor([[1.0, -1.0]])])
        >>> [layer.input.levels for layer in quantized_layers(net)]
        [(-128, 127), (0, 255)]
    """
    quantizers = {layer.name: layer.input for layer in quantized_layers(net) if layer.input is not None}
    if not quantizers:
        raise UsageError("No input of this network is quantised; call quantize_(net, act_bits=...) before calibrate.")
    observers = {name: _Observer() for name in quantizers}
    for name, quantizer in quantizers.items():
        quantizer.observer = observers[name]
    any_batch = False
    try:
        with torch.no_grad():
            for batch in batches:
                any_batch = True
                net(_input(batch)) if run is None else run(net, batch)
    finally:
        for quantizer in quantizers.values():
            quantizer.observer = None
    if not any_batch:
        raise UsageError("There is no batch to calibrate on: batches is empty, or was used up by an earlier pass.")
    _refuse_unreached([name for name, observer in observers.items() if not observer.count], list(candidates(net)))
    for name, observer in observers.items():
        observer.refuse_if_useless(called(name))
    for name, quantizer in quantizers.items():
        observers[name].hand_over(quantizer)
    return net


def _input(batch: Any) -> Any:
    """Refuse what loaders give beside inputs."""
    if isinstance(batch, list | tuple | Mapping):
        key = next(iter(batch), 0) if isinstance(batch, Mapping) else 0
        raise UsageError(
            f"A batch to calibrate on is a {type(batch).__name__} and not an input; say what the network is given, as "
            f"in calibrate(net, batches, run=lambda net, batch: net(batch[{key!r}]))."
        )
    return batch


def _refuse_unreached(unreached: list[str], names: list[str]) -> None:
    """Say of which inputs no scale can be made as they were never seen, all at once."""
    if unreached:
        raise UsageError(
            f"No batch reached the input of {listed([called(name) for name in unreached])}: either a branch did not "
            "run in the mode that the network stands in, then call net.train() before calibrate; or a weight is used "
            "without a call of its layer, as nn.MultiheadAttention does with out_proj, then build the network anew and "
            f"leave it in full precision with quantize_(net, {leave_out(unreached, names)})."
        )


class _Observer:
    """Sums of what a quantiser is given."""

    def __init__(self) -> None:
        self.total, self.count, self.lowest = 0.0, 0, 0.0

    def see(self, values: Tensor) -> None:
        if not values.numel():
            return
        self.total += float(values.abs().sum(dtype=torch.float64 if values.device.type == "cpu" else torch.float32))
        self.count += values.numel()
        self.lowest = min(self.lowest, float(values.min()))

    def refuse_if_useless(self, name: str) -> None:
        """Say why no scale can be made of it."""
        if not 0 < self.total < float("inf"):
            raise UsageError(
                f"The input of {name} is {'zero throughout' if self.total == 0 else 'not finite'} in the batches to "
                "calibrate on, so it has no scale; pass batches of training data."
            )

    def hand_over(self, quantizer: ActivationQuantizer) -> None:
        """Give the quantiser its range and scale."""
        quantizer.set_scale(1.0, signed=self.lowest < 0)
        assert quantizer.levels is not None  # just set
        high = quantizer.levels[1]
        quantizer.set_scale(2 * self.total / self.count / high**0.5, signed=self.lowest < 0)
