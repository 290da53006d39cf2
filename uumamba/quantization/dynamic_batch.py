"""Check of an exported graph for every batch size."""

import sys
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from uumamba.runtime.errors import UsageError

TOLERANCE = 0.01
"""Share of the mean logit: a value rounded to another level changes a few logits, another path changes all logits."""


def check_any_batch(program: Any, net: str, sample: Tensor, output: Any) -> None:
    """Raise if a graph is valid for some batch sizes only.

    If a network's path depends on the batch size, torch exports the path of the example without a warning.

    Args:
        program: result of ``torch.onnx.export`` with a dynamic batch axis; ONNX Runtime runs one sample.
        net: name of the network for the message.
        sample: a batch of one.
        output: output of the network for ``sample``.

    Raises:
        UsageError: axis 0 became a number, the graph is valid for some sizes only, or the outputs for one sample
            differ.
    """
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        size = value.shape[0] if value.shape else None
        if isinstance(size, int):
            raise fixed_batch_error(net, f"axis 0 of {value.name} is {size}")
    condition = _find_condition(program.exported_program)
    if condition:
        raise fixed_batch_error(net, f"only {condition}")
    if not _has_same_output(program, sample, output):
        raise fixed_batch_error(net, "another output for one sample")


def fixed_batch_error(net: str, found: str) -> UsageError:
    """Return the error for a graph that depends on the batch size."""
    return UsageError(
        "dynamic_batch",
        got=f"a graph of {net} with {found}",
        expected="a graph for every batch size",
        fix="set dynamic_batch=False and pass an example of the wanted batch size",
    )


def _find_condition(program: Any) -> str:
    """Return torch's conditions on batch sizes above 1; empty without conditions.

    Torch's own layers branch on a batch of one with equal results, so :func:`_has_same_output` checks this size.
    """
    (image,) = program.graph_signature.user_inputs
    size = next(node.meta["val"].shape[0] for node in program.graph.nodes if node.name == image).node
    bounds = program.range_constraints[size.expr]
    conditions = [f"batch >= {bounds.lower}"] if bounds.lower > 2 else []
    conditions += [f"batch <= {bounds.upper}"] if bounds.upper < sys.maxsize else []  # maxsize is torch's infinity
    asserted = [each.expr for group in size.shape_env.deferred_runtime_asserts.values() for each in group]
    texts = [str(expr).replace(str(size.expr), "batch") for expr in asserted if expr.free_symbols == {size.expr}]
    return " and ".join(conditions + [text for text in texts if text != "Ne(batch, 1)"])


def _has_same_output(program: Any, sample: Tensor, output: Any) -> bool:
    try:
        exported = program(sample)  # in ONNX Runtime
    except Exception:  # noqa: BLE001  # ONNX Runtime's errors share no other base; the graph may fail for one sample
        return False
    return all(map(_is_close, exported, [each for each in tree_leaves(output) if isinstance(each, Tensor)]))


def _is_close(exported: Tensor, expected: Tensor) -> bool:
    if exported.shape != expected.shape:
        return False
    exported, expected = (each[expected.isfinite()].double() for each in (exported, expected))
    return bool((exported - expected).abs().sum() <= TOLERANCE * expected.abs().sum())
