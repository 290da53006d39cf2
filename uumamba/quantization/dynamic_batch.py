"""Check that an exported graph holds for every batch size, not only for that of its example."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_leaves

from uumamba.runtime.errors import UsageError

TOLERANCE = 0.01
"""Share of the mean logit: a value rounded to another level moves a few logits, another path moves all of them."""


def check_any_batch(program: Any, path: Path, net: str, sample: Tensor, answer: Any) -> None:
    """Raise if a graph holds for some batch sizes only.

    Where a network's path depends on the batch size, torch exports the path of the example without a warning.

    Args:
        program: result of ``torch.onnx.export`` with a dynamic batch axis.
        path: the program as an ONNX file, which ONNX Runtime runs on one sample.
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
    if not _has_same_output(path, sample, answer):
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


def _has_same_output(path: Path, sample: Tensor, answer: Any) -> bool:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failed run is an answer here and no message
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    try:
        found = session.run(None, {session.get_inputs()[0].name: sample.numpy(force=True)})
    except Exception:  # noqa: BLE001  # onnxruntime's errors share no other base; the path may fail for one sample
        return False
    expected = [each.numpy(force=True) for each in tree_leaves(answer) if isinstance(each, torch.Tensor)]
    return all(map(_is_close, found, expected))


def _is_close(found: NDArray[Any], expected: NDArray[Any]) -> bool:
    if found.shape != expected.shape:
        return False
    found, expected = (each[np.isfinite(expected)].astype(np.float64) for each in (found, expected))
    return bool(np.abs(found - expected).sum() <= TOLERANCE * np.abs(expected).sum())
