"""Types and ranges of configuration keys, in the words of YAML."""

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from uumamba.config.bind import Part
from uumamba.config.registry import KINDS
from uumamba.runtime.options import Limit

NAMES = {float: "number", int: "whole number", bool: "true or false", str: "text", NoneType: "null"}
SIGNS = {"of at least": "≥", "of at most": "≤", "above": ">", "below": "<", "in ascending order": ", ascending"}


def describe_values(annotation: Any) -> str:
    """Describe the values that a key accepts.

    Example:
        >>> from uumamba.runtime.options import NonNegativeRange, Probability
        >>> describe_values(Probability | None), describe_values(NonNegativeRange)
        ('number ≥ 0 and ≤ 1 or null', 'list of 2: number ≥ 0, ascending')
        >>> describe_values(Literal["ring", "torus"])
        '`ring` or `torus`'
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [_shorten(limit.words) for limit in inner[1:] if isinstance(limit, Limit)]
        return f"{describe_values(inner[0])} {' and '.join(limits)}".strip().replace(" ,", ",")
    if origin in (Union, UnionType):
        return " or ".join(map(describe_values, inner))
    if origin is Literal:
        return " or ".join(f"`{_to_yaml(choice)}`" for choice in inner)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping to {describe_values(inner[1])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _describe_list(origin, inner)
    return NAMES.get(annotation, "section")


def format_value(value: Any) -> str:
    """Format a default as YAML in inline code.

    Example:
        >>> format_value((0.5, None)), format_value(True), format_value(1)
        ('`[0.5, null]`', '`true`', '`1`')
    """
    if isinstance(value, Part):
        return "its defaults" if KINDS[value.kind].only else f"`{{name: {value.name}}}`"
    return "its defaults" if isinstance(value, BaseModel) else f"`{_to_yaml(value)}`"


def _describe_list(origin: Any, inner: tuple[Any, ...]) -> str:
    if origin is not tuple or inner[-1] is Ellipsis:
        words = describe_values(inner[0])
        return f"list of ({words})" if " or " in words or "list" in words else f"list of {words}"
    each = list(map(describe_values, inner))
    return f"list of {len(each)}: {each[0] if len(set(each)) == 1 else ', '.join(each)}"


def _shorten(words: str) -> str:
    for long, sign in SIGNS.items():
        words = words.replace(long, sign)
    return words


def _to_yaml(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_to_yaml(each)}' for key, each in value.items())}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_to_yaml, value))}]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)
