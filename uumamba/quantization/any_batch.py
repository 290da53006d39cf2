"""Whether a captured graph gives a network's answers for batches of other sizes than that of its example."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter
from torch.fx.node import Argument, Target
from torch.utils._pytree import tree_leaves

from uumamba.runtime.errors import UsageError

TOLERANCE = 0.01
"""Share of the mean logit: a value pushed to another level moves a few logits, another path moves them all."""

_WRITTEN = "onnx_symbolic._symbolic.default"
"""What ``torch.onnx.ops.symbolic`` leaves in a graph; torch knows it by its name once it exported."""


def refuse_other_batches(program: Any, net: str, sample: Tensor, answer: Any) -> None:
    """Where a network's path depends on the number of samples, torch writes the path of the example's, in silence.

    Args:
        program: what ``torch.onnx.export`` gave, with the batch free.
        net: what messages call the network.
        sample: a batch of one.
        answer: the network's to it.

    Raises:
        UsageError: an axis 0 became a number, the path holds for some sizes alone, or its answer to one sample is not
            the network's.
    """
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        size = value.shape[0] if value.shape else None
        if isinstance(size, int):
            raise for_one_size(net, f"axis 0 of {value.name} is {size} in its graph")
    found = _condition(program.exported_program)
    if found:
        raise for_one_size(net, f"its graph is right where {found} alone")
    if not _answers(program.exported_program, sample, answer):
        raise for_one_size(net, "its graph gives another answer to one sample")


def for_one_size(net: str, found: str) -> UsageError:
    """The refusal of a network by its name, with what was found."""
    return UsageError(
        f"{net} cannot be written for batches of any size: what it computes depends on the size, so that {found}; "
        "export it with dynamic_batch=False and an example of the batch that the file is for."
    )


def _condition(program: Any) -> str:
    """What torch took for granted of the number of samples, in words; empty where that is any of two or more.

    Its own layers ask whether a batch is one sample and compute the same, so that :func:`_answers` judges that size.
    """
    (image,) = program.graph_signature.user_inputs
    size = next(node.meta["val"].shape[0] for node in program.graph.nodes if node.name == image).node
    bounds = program.range_constraints[size.expr]
    found = [f"batch >= {bounds.lower}"] if bounds.lower > 2 else []
    found += [f"batch <= {bounds.upper}"] if bounds.upper < sys.maxsize else []  # else it is torch's infinity
    asked = [each.expr for some in size.shape_env.deferred_runtime_asserts.values() for each in some]
    of_size = [str(expr).replace(str(size.expr), "batch") for expr in asked if expr.free_symbols == {size.expr}]
    return " and ".join(found + [each for each in of_size if each != "Ne(batch, 1)"])


class _AsTorch(Interpreter):
    """Runs a captured graph in torch, where nodes of ONNX give zeros and assertions about sizes fail."""

    def call_function(self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]) -> Any:
        """The value of one node."""
        if target is torch.ops.aten._assert_scalar.default:
            return None
        if str(target) == _WRITTEN:
            inputs: Any = args[0]
            return _OPERATORS[str(args[1])](*inputs, *kwargs["attr_ints"])
        return super().call_function(target, args, kwargs)


def _quantize_linear(values: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return ((values / scale).round() + zero).clamp(-128, 127).to(torch.int8)


def _dequantize_linear(levels: Tensor, scale: Tensor, zero: Tensor, axis: int = 0) -> Tensor:
    shape = [-1 if each == axis else 1 for each in range(levels.ndim)] if scale.ndim else []
    return (levels.to(scale.dtype) - zero.to(scale.dtype).view(shape)) * scale.view(shape)


_OPERATORS: dict[str, Callable[..., Tensor]] = {
    "Max": torch.maximum,
    "Clip": torch.clamp,
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
}


def _answers(program: Any, sample: Tensor, answer: Any) -> bool:
    module: GraphModule = program.module(check_guards=False)
    written = {node.args[1] for node in module.graph.nodes if str(node.target) == _WRITTEN}
    if not written <= set(_OPERATORS):  # nodes that the network itself writes are not known to torch
        return True
    try:
        with torch.no_grad():
            found = tree_leaves(_AsTorch(module).run(sample))
    except (RuntimeError, IndexError):  # the path of several samples may have none for one
        return False
    return all(map(_alike, found, tree_leaves(answer)))


def _alike(found: Any, expected: Any) -> bool:
    if not isinstance(expected, Tensor):
        return True
    if found.shape != expected.shape:
        return False
    found, expected = (each[expected.isfinite()].double() for each in (found, expected))
    return bool((found - expected).abs().sum() <= TOLERANCE * expected.abs().sum())
