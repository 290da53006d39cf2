"""Search for a gradient scaler that a closure uses itself."""

from collections.abc import Iterator
from functools import partial
from inspect import getattr_static
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch.amp import GradScaler

DEPTH = 4  # calls from the closure to a helper's helper


def uses_scaler(closure: Any, *, depth: int = DEPTH) -> bool:
    """Return whether a closure's code scales by an enabled ``GradScaler``.

    Neither gradients nor losses reveal a scale: the search reads the variables, attributes and functions that the code
    names, without calling anything. A scaler is used if the same function names ``scale``.

    Example:
        >>> import torch
        >>> scaler, weight = torch.amp.GradScaler("cpu"), torch.ones(1, requires_grad=True)
        >>> uses_scaler(lambda: scaler.scale(weight.sum())), uses_scaler(lambda: weight.sum())
        (True, False)
    """
    if depth == 0:
        return False
    if isinstance(closure, partial):
        given = (closure.func, *closure.args, *closure.keywords.values())
        return any(_is_enabled(each) or uses_scaler(each, depth=depth - 1) for each in given)
    function, owners = closure, []
    if isinstance(closure, MethodType):
        function, owners = closure.__func__, [closure.__self__]
    elif not isinstance(closure, FunctionType):
        function, owners = getattr_static(type(closure), "__call__", None), [closure]
    if not isinstance(function, FunctionType) or (function.__module__ or "").partition(".")[0] == "torch":
        return False
    names = set(_list_names(function.__code__))
    values = [*owners, *_list_variables(function, names)]
    parts = [vars(value)[name] for value in values for name in names & _get_attributes(value).keys()]
    if "scale" in names and any(map(_is_enabled, (*values, *parts))):
        return True
    methods = [
        MethodType(method, value)
        for value in values
        for name in names
        if isinstance(method := getattr_static(type(value), name, None), FunctionType)
    ]
    return any(uses_scaler(each, depth=depth - 1) for each in (*values[len(owners) :], *methods) if callable(each))


def _list_names(code: CodeType) -> Iterator[str]:
    """Yield every name in a function's code and in functions inside it."""
    yield from (*code.co_names, *code.co_freevars)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _list_names(inner)


def _list_variables(function: FunctionType, names: set[str]) -> Iterator[Any]:
    """Yield the values of a function's free variables, globals and defaults."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    found = [function.__globals__[name] for name in names & function.__globals__.keys()]
    yield from (value for value in found if not isinstance(value, ModuleType | type))
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())


def _get_attributes(value: Any) -> dict[str, Any]:
    return getattr(value, "__dict__", {}) if not isinstance(value, ModuleType | type) else {}


def _is_enabled(value: Any) -> bool:
    return isinstance(value, GradScaler) and value.is_enabled()
