"""Nested state as flat tensors and JSON values, for files without pickle."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from uumamba.runtime.errors import UsageError, require

TENSOR, TUPLE, PAIRS = "$tensor", "$tuple", "$pairs"


def flatten(tree: Any, name: str = "state") -> tuple[dict[str, Tensor], Any]:
    """Split nested state into tensors by path and JSON values.

    Lists, tuples and dictionaries of any depth, with string or number keys, come back from :func:`unflatten` with the
    same types. Numbers must be Python's. A float that is not finite needs a JSON reader that accepts it, like Python's.

    Raises:
        UsageError: a part is no tensor, string, number, bool or None, or two tensors have the same path.

    Example:
        >>> import torch
        >>> tensors, rest = flatten({"weight": torch.ones(1), "betas": (0.9, 0.99)})
        >>> tensors
        {'state/weight': tensor([1.])}
        >>> rest
        {'weight': {'$tensor': 'state/weight'}, 'betas': {'$tuple': [0.9, 0.99]}}
        >>> unflatten(tensors, rest)
        {'weight': tensor([1.]), 'betas': (0.9, 0.99)}
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _take_apart(tree, name, tensors)


def unflatten(tensors: Mapping[str, Tensor], rest: Any) -> Any:
    """Rebuild the tree from the two results of :func:`flatten`."""
    if isinstance(rest, list):
        return [unflatten(tensors, value) for value in rest]
    if not isinstance(rest, dict):
        return rest
    if TENSOR in rest:
        return tensors[rest[TENSOR]]
    if TUPLE in rest:
        return tuple(unflatten(tensors, rest[TUPLE]))
    pairs = rest[PAIRS] if PAIRS in rest else rest.items()
    return {key: unflatten(tensors, value) for key, value in pairs}


def join_keys(values: Any, separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to leaves with joined keys.

    An empty dictionary is a leaf.

    Example:
        >>> join_keys({"optim": {"rho": 0.1}, "seed": 0})
        {'optim.rho': 0.1, 'seed': 0}
    """
    if not isinstance(values, Mapping) or not values:
        return {prefix: values}
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= join_keys(value, separator, f"{prefix}{separator}{key}" if prefix else str(key))
    return leaves


def _take_apart(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        require(
            path not in tensors,
            path,
            got="two tensors",
            expected="one tensor per path",
            fix="use keys that differ as text, not 1 and '1'",
        )
        tensors[path] = tree
        return {TENSOR: path}
    if tree is None or isinstance(tree, str | bool | int | float):
        return tree
    if isinstance(tree, list | tuple):
        values = [_take_apart(value, f"{path}/{index}", tensors) for index, value in enumerate(tree)]
        return values if isinstance(tree, list) else {TUPLE: values}
    if isinstance(tree, Mapping):
        pairs = [[key, _take_apart(value, f"{path}/{key}", tensors)] for key, value in tree.items()]
        plain = all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs)
        return dict(pairs) if plain else {PAIRS: pairs}
    raise UsageError(
        path, got=type(tree).__name__, expected="a tensor or plain value", fix="convert the value before it is stored"
    )
