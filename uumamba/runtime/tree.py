"""Nested state as flat tensors and JSON, and back: what a file without pickle can hold."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

TENSOR, TUPLE, PAIRS = "$tensor", "$tuple", "$pairs"


def flatten(tree: Any, name: str = "state") -> tuple[dict[str, Tensor], Any]:
    """Tensors by their path, and the rest as JSON values that refer to them.

    Lists, tuples and dictionaries of any depth and with string or number keys come back from :func:`unflatten` as what
    they were. Numbers must be Python's; a float that is not finite needs a JSON reader that knows it, as Python's does.

    Raises:
        TypeError: a part is neither of these nor a tensor, string, number, bool or None.

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
    """The tree that :func:`flatten` took apart."""
    if isinstance(rest, list):
        return [unflatten(tensors, value) for value in rest]
    if not isinstance(rest, dict):
        return rest
    if TENSOR in rest:
        return tensors[rest[TENSOR]]
    if TUPLE in rest:
        return tuple(unflatten(tensors, value) for value in rest[TUPLE])
    pairs = rest[PAIRS] if PAIRS in rest else rest.items()
    return {key: unflatten(tensors, value) for key, value in pairs}


def _take_apart(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        if path in tensors:
            raise ValueError(f"two tensors are called {path}: a dictionary has a number and its text as keys")
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
    raise TypeError(f"{path} is a {type(tree).__name__}, which a checkpoint cannot hold; keep tensors and plain values")
