"""Initial activation scales of a quantized network."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from uumamba.quantization.layers import find_modules, quantized_layers
from uumamba.quantization.levels import level_range
from uumamba.quantization.overrides import join_names, parameter_name, suggest_overrides
from uumamba.quantization.quantizers import ActivationQuantizer
from uumamba.runtime.errors import require
from uumamba.runtime.options import Batches, check_options


@check_options
def calibrate(net: nn.Module, batches: Batches, *, run: Callable[[nn.Module, Any], Any] | None = None) -> nn.Module:
    r"""Set scale and range of every activation quantizer from a few batches.

    The scale becomes :math:`s_0 = 2\,\mathrm{mean}|v| / \sqrt{Q_p}` over all batches; the range is unsigned if no
    value is negative. During calibration activations are not rounded, and weights are used as in training. The network
    runs without gradients in its current mode: use evaluation mode to keep batch-norm statistics, or training mode to
    calibrate heads that only training uses. Existing scales are replaced. Calibrate before the network is wrapped for
    data-parallel training, so that all ranks get the same scales.

    Args:
        net: a network after :func:`uumamba.quantization.quantize_`.
        batches: a few batches of training data, each an input of the network.
        run: ``run(net, batch)`` runs one forward pass; None for ``net(batch)``.

    Returns:
        The same network.

    Raises:
        UsageError: a quantized input has no value, only zeros or values that are not finite; the network has no
            quantized input; there is no batch; or a batch is a list or a mapping and ``run`` is None.

    Example:
        >>> from uumamba.quantization import quantize_
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2))
        >>> _ = calibrate(quantize_(net), [torch.tensor([[1.0, -1.0]])])
        >>> [layer.input.levels for layer in quantized_layers(net)]
        [(-128, 127), (0, 255)]
    """
    quantizers = {layer.name: layer.input for layer in quantized_layers(net) if layer.input is not None}
    require(
        quantizers,
        "net",
        got=type(net).__name__,
        expected="a network with quantized inputs",
        fix="call quantize_(net, act_bits=...) first",
    )
    observers = {name: _Observer() for name in quantizers}
    for name, quantizer in quantizers.items():
        quantizer.observer = observers[name].add
    is_empty = True
    try:
        with torch.no_grad():
            for batch in batches:
                is_empty = False
                _run_on_input(net, batch) if run is None else run(net, batch)
    finally:
        for quantizer in quantizers.values():
            quantizer.observer = None
    require(
        not is_empty,
        "batches",
        got="no batch",
        expected="at least one batch",
        fix="pass a list instead of an exhausted iterator",
    )
    unused = [name for name, observer in observers.items() if not observer.count]
    require(
        not unused,
        "batches",
        got=f"no value for the inputs of {join_names(unused)}",
        expected="a value for every quantized input",
        fix="call net.train() before calibrate if only training runs these layers; if another module uses the weights, "
        "as in nn.MultiheadAttention, quantize a new network with "
        f"{suggest_overrides(unused, list(find_modules(net)))}",
    )
    for name, observer in observers.items():
        require(
            0 < observer.total < float("inf"),
            parameter_name(name, "input"),
            got="zeros only" if observer.total == 0 else "NaN or infinite values",
            expected="finite values with at least one nonzero",
            fix="calibrate on batches of training data",
        )
    for name, quantizer in quantizers.items():
        observers[name].initialize(quantizer)
    return net


def _run_on_input(net: nn.Module, batch: Any) -> None:
    key = next(iter(batch), 0) if isinstance(batch, Mapping) else 0
    require(
        not isinstance(batch, list | tuple | Mapping),
        "batches",
        got=type(batch).__name__,
        expected="inputs of the network",
        fix=f"pass run=lambda net, batch: net(batch[{key!r}])",
    )
    net(batch)


class _Observer:
    """Sum, number and minimum of a quantizer's inputs."""

    def __init__(self) -> None:
        self.total, self.count, self.lowest = 0.0, 0, 0.0

    def add(self, values: Tensor) -> None:
        if values.numel():
            self.total += float(values.abs().sum(dtype=torch.float64 if values.device.type == "cpu" else torch.float32))
            self.count += values.numel()
            self.lowest = min(self.lowest, float(values.min()))

    def initialize(self, quantizer: ActivationQuantizer) -> None:
        signed = self.lowest < 0
        high = level_range(quantizer.bits, signed=signed)[1]
        quantizer.set_scale(2 * self.total / self.count / high**0.5, signed=signed)
