"""Check that an exported graph holds for every batch size, not only for that of its example."""

import sys
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from uumamba.runtime.errors import UsageError

TOLERANCE = 0.01
"""Share of the mean logit: a value rounded to another level moves a few logits, another path moves all of them."""


def check_any_batch(program: Any, net: str, sample: Tensor, answer: Any) -> None:
    """Raise if a graph holds for some batch sizes only.

    Where a network's path depends on the batch size, torch exports the path of the example without a warning.

    Args:
        program: result of ``torch.onnx.export`` with a dynamic batch axis; ONNX Runtime runs it on one sample.
        net: name of the network for the message.
        sample: a batch of one.
        answer: output of the network for ``sample``.

    Raises:
        UsageError: axis 0 became a number, the path holds for some sizes only, or the output for one sample differs
            from the network's.
    """
    for value in (*program.model.graph.inputs, *program.model.graph.outputs):
        size = value.shape[0] if value.shape else None
        if isinstance(size, int):
            raise fixed_batch_error(net, f"axis 0 of {value.name} is {size}")
    condition = _find_condition(program.exported_program)
    if condition:
        raise fixed_batch_error(net, f"only {condition}")
    if not _has_same_output(program, sample, answer):
        raise fixed_batch_error(net, "another output for one sample")


def fixed_batch_error(net: str, found: str) -> UsageError:
    """Return the error for a network whose graph depends on the batch size."""
    return UsageError(
        "dynamic_batch",
        got=f"a graph of {net} with {found}",
        expected="a graph for every batch size",
        fix="set dynamic_batch=False and pass an example of the batch size that the file is for",
    )


def _find_condition(program: Any) -> str:
    """Return torch's assumptions on the batch size; empty if the graph holds for two samples or more.

    Torch's own layers test for a batch of one and compute the same, so :func:`_has_same_output` checks that size.
    """
    (image,) = program.graph_signature.user_inputs
    size = next(node.meta["val"].shape[0] for node in program.graph.nodes if node.name == image).node
    bounds = program.range_constraints[size.expr]
    found = [f"batch >= {bounds.lower}"] if bounds.lower > 2 else []
    found += [f"batch <= {bounds.upper}"] if bounds.upper < sys.maxsize else []  # else it is torch's infinity
    asserted = [each.expr for some in size.shape_env.deferred_runtime_asserts.values() for each in some]
    of_size = [str(expr).replace(str(size.expr), "batch") for expr in asserted if expr.free_symbols == {size.expr}]
    return " and ".join(found + [each for each in of_size if each != "Ne(batch, 1)"])


def _has_same_output(program: Any, sample: Tensor, answer: Any) -> bool:
    try:
        found = program(sample)  # in ONNX Runtime
    except Exception:  # noqa: BLE001  # ONNX Runtime's errors share no other base; the path may fail for one sample
        return False
    return all(map(_is_close, found, [each for each in tree_leaves(answer) if isinstance(each, Tensor)]))


def _is_close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    found, expected = (each[expected.isfinite()].double() for each in (found, expected))
    return bool((found - expected).abs().sum() <= TOLERANCE * expected.abs().sum())
