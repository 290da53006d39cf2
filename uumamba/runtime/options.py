"""Types and ranges of options, and the one reader of their values."""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, Unpack, cast, get_args, get_origin, get_type_hints

import numpy as np

from uumamba.runtime.errors import UsageError, require


@dataclass(frozen=True)
class Limit:
    """Limit of an ``Annotated`` type.

    Attributes:
        words: description of valid values, after the type's name.
        holds: returns whether a value is valid.
    """

    words: str
    holds: Callable[[Any], bool]

    def __repr__(self) -> str:
        return self.words.removeprefix("of ")


A_BATCH = ("shape", "keys")
"""Attributes of a tensor and of a mapping, each of which is a single batch."""
AT_LEAST_0 = Limit("of at least 0", lambda value: value >= 0)
AT_LEAST_1 = Limit("of at least 1", lambda value: value >= 1)
AT_LEAST_2 = Limit("of at least 2", lambda value: value >= 2)
ABOVE_0 = Limit("above 0", lambda value: value > 0)
AT_MOST_1 = Limit("of at most 1", lambda value: value <= 1)
AT_MOST_2 = Limit("of at most 2", lambda value: value <= 2)
AT_MOST_3 = Limit("of at most 3", lambda value: value <= 3)
AT_MOST_8 = Limit("of at most 8", lambda value: value <= 8)
BELOW_1 = Limit("below 1", lambda value: value < 1)
ASCENDING = Limit("in ascending order", lambda bounds: bounds[0] <= bounds[1])
NO_CLASS = Limit("but no class", lambda value: not isinstance(value, type))
EXPLAINED = Limit("", lambda _: True)
"""Mark of a type whose owner refuses wrong values itself, with the line to write."""

NonNegative = Annotated[float, AT_LEAST_0]
Positive = Annotated[float, ABOVE_0]
Probability = Annotated[float, AT_LEAST_0, AT_MOST_1]
BelowOne = Annotated[float, AT_LEAST_0, BELOW_1]
BetweenZeroAndOne = Annotated[float, ABOVE_0, BELOW_1]
NonNegativeInt = Annotated[int, AT_LEAST_0]
PositiveInt = Annotated[int, AT_LEAST_1]
AtLeastTwo = Annotated[int, AT_LEAST_2]
Range = Annotated[tuple[float, float], ASCENDING]
NonNegativeRange = Annotated[tuple[NonNegative, NonNegative], ASCENDING]
PositiveRange = Annotated[tuple[Positive, Positive], ASCENDING]
Bits = Annotated[int, AT_LEAST_2, AT_MOST_8]
Batches = Annotated[Iterable[Any], Limit("of batches", lambda value: not any(hasattr(value, name) for name in A_BATCH))]
SpatialDims = Annotated[int, AT_LEAST_2, AT_MOST_3]

Made = TypeVar("Made", bound=Callable[..., Any])
_NAMES = {
    float: "a finite number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    NoneType: "None",
    Callable: "a function",
    Iterable: "an iterable",
}


def check_options(made: Made) -> Made:
    """Make a constructor check its arguments by their annotations.

    Names are those of the signature, numbers are finite and within the range of an ``Annotated`` type, True and False
    are no numbers, and choices are those of a ``Literal``. So are elements of sequences and mappings. Objects, such as
    networks and functions, are instances of the annotated class. The signature stays as it is.

    Args:
        made: a function, an ``__init__``, or a class such as a dataclass.

    Raises:
        UsageError: in the call, for the first wrong argument; the key is the argument's name.

    Example:
        >>> @check_options
        ... def train(*, rho: NonNegative = 0.05) -> float:
        ...     return rho
        >>> train(rho=-1.0)
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: rho: got -1.0, expected a finite number of at least 0.
    """
    if isinstance(made, type):
        made.__init__ = check_options(made.__init__)  # type: ignore[misc]  # the class's own
        return made

    @cache
    def annotations() -> tuple[list[str], dict[str, Any], list[str] | None]:
        parameters = inspect.signature(made).parameters.values()
        hints = get_type_hints(made, include_extras=True)
        named = [each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
        others = [hints.get(each.name) for each in parameters if each.kind is each.VAR_KEYWORD]
        shared = [list(get_args(each)[0].__annotations__) if get_origin(each) is Unpack else None for each in others]
        known = None if None in shared else [*named, *(name for names in shared for name in names or ())]
        by_place = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
        checked_first = sorted((name for name in named if name in hints), key=lambda name: not is_data(hints[name]))
        return by_place, {name: hints[name] for name in checked_first}, known

    @wraps(made)
    def checked(*args: Any, **kwargs: Any) -> Any:
        names, hints, known = annotations()
        for name, value in kwargs.items():
            if known is not None and name not in known:
                listed = ", ".join(each for each in known if each != "self")
                raise UsageError(name, got=value, expected=f"an argument by a known name: {listed}")
        given = dict(zip(names, args, strict=False)) | kwargs
        for name in hints:  # numbers and choices before objects, which a configuration makes from other sections
            if name in given:
                _check_argument(hints[name], given[name], name)
        return made(*args, **kwargs)

    return cast(Made, checked)


def read_value(annotation: Any, value: Any, key: str, *, from_yaml: bool = False, described: Any = None) -> Any:
    """Check a value by its type and range, and convert it.

    Numbers are finite, and True and False are no numbers. Sequences become tuples. Objects stay as they are; of their
    types only the class is checked, for a protocol if it is ``runtime_checkable``.

    Args:
        annotation: the type.
        value: the value.
        key: name of the value, for errors; elements of the value have its key and their own.
        from_yaml: accept text that is a number, whole numbers such as 2.0, and the text ``None``, as YAML reads them.
        described: the type in an error about the complete value; None for ``annotation``.

    Raises:
        UsageError: the value is of another type or out of range.

    Example:
        >>> read_value(tuple[Probability, ...] | None, [0, "1e-3"], "p", from_yaml=True)
        (0.0, 0.001)
        >>> read_value(tuple[Probability, ...] | None, [0, 1.5], "p")
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: p.1: got 1.5, expected a finite number of at least 0 and of at most 1.
    """
    described = described or annotation
    origin, inner = get_origin(annotation), get_args(annotation)
    found, is_valid = value, True
    if origin is Annotated and EXPLAINED in inner:
        return value
    if origin is Annotated:
        found = read_value(inner[0], value, key, from_yaml=from_yaml, described=described)
        is_valid = all(limit.holds(found) for limit in inner[1:] if isinstance(limit, Limit))
    elif origin in (Union, UnionType):
        found = _read_one_of(inner, value, key, from_yaml, described)
    elif origin is Literal:
        is_valid = any(type(value) is type(choice) and value == choice for choice in inner)
    elif annotation in _NAMES:
        found = _parse(annotation, value) if from_yaml else value
        is_valid = _is_scalar(annotation, found)
        found = float(found) if is_valid and annotation is float else found
    elif _is_kind(origin, Sequence) or _is_kind(origin, Mapping):
        types = _list_types(origin, inner, value)
        is_valid = types is not None
        places = value if isinstance(value, Mapping) else range(len(types or ()))
        read = {
            place: read_value(kind, value[place], f"{key}.{place}", from_yaml=from_yaml)
            for kind, place in zip(types or (), places, strict=False)
        }
        found = read if isinstance(value, Mapping) else tuple(read.values())
    else:
        is_valid = _is_instance(value, origin or annotation)
    got = tuple(value) if isinstance(value, list) else value
    require(is_valid, key, got=got, expected=describe(described))
    return found


def is_data(annotation: Any) -> bool:
    """Return whether YAML can hold every value of a type.

    Example:
        >>> is_data(tuple[PositiveInt, ...] | None), is_data(Callable[..., int])
        (True, False)
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, Literal):
        return origin is Literal or is_data(inner[0])
    if origin in (Union, UnionType) or _is_kind(origin, Sequence) or _is_kind(origin, Mapping):
        return all(each is Ellipsis or is_data(each) for each in inner)
    return annotation in _NAMES


def describe(annotation: Any) -> str:
    """Describe the values of a type, for errors.

    Example:
        >>> describe(Positive | None), describe(Literal["rank", "global"])
        ('a finite number above 0 or None', 'rank or global')
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = " and ".join(limit.words for limit in inner[1:] if isinstance(limit, Limit))
        return f"{describe(inner[0])} {limits}".strip()
    if origin in (Union, UnionType):
        return " or ".join(map(describe, inner))
    if origin is Literal:
        return " or ".join(map(str, inner))
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"{len(inner)} values: {', '.join(map(describe, inner))}"
    if _is_kind(origin, Sequence):
        return f"a list, each {describe(inner[0])}"
    if _is_kind(origin, Mapping):
        return f"a mapping to {describe(inner[1])}"
    return _NAMES.get(origin or annotation) or _add_article(getattr(origin or annotation, "__name__", str(annotation)))


def _add_article(name: str) -> str:
    return f"an {name}" if name[0] in "AEIOUaeiou" else f"a {name}"


def _check_argument(annotation: Any, value: Any, name: str) -> None:
    """Raise for a wrong argument.

    Only elements of a mapping have a key of their own.
    """
    try:
        read_value(annotation, value, name)
    except UsageError as error:
        whole = UsageError(name, got=value, expected=describe(annotation))
        raise (error if isinstance(value, Mapping) else whole) from None


def _read_one_of(kinds: Sequence[Any], value: Any, key: str, from_yaml: bool, described: Any) -> Any:
    """Read a value by the first type that fits."""
    wrong = UsageError(key, got=value, expected=describe(described))
    for is_lenient in sorted({False, from_yaml}):
        for each in kinds:
            try:
                return read_value(each, value, key, from_yaml=is_lenient, described=described)
            except UsageError as error:
                wrong = wrong if error.key == key else error
    raise wrong


def _parse(kind: type, value: Any) -> Any:
    """Read text that is a number or None, and 2.0 as 2."""
    if isinstance(value, str) and kind is not str:
        with suppress(ValueError):
            value = None if value == "None" else float(value)
    return int(value) if kind is int and isinstance(value, float) and value.is_integer() else value


def _is_scalar(kind: type, value: Any) -> bool:
    if kind in (float, int):
        is_number = isinstance(value, Real if kind is float else Integral) and not isinstance(value, bool)
        return is_number and abs(value) <= sys.float_info.max
    return isinstance(value, kind)


def _list_types(origin: Any, inner: tuple[Any, ...], value: Any) -> tuple[Any, ...] | None:
    """List the type of each element; None for another container."""
    if _is_kind(origin, Mapping):
        is_valid = isinstance(value, Mapping) and all(_is_scalar(inner[0], name) for name in value)
        return inner[1:] * len(value) if is_valid else None
    is_array = isinstance(value, np.ndarray) and value.ndim == 1
    if isinstance(value, str) or not (is_array or isinstance(value, Sequence)):
        return None
    types = inner if origin is tuple and inner[-1] is not Ellipsis else inner[:1] * len(value)
    return types if len(types) == len(value) else None


def _is_instance(value: Any, kind: Any) -> bool:
    """Return False for an object of another class.

    Types without instances, such as Any, accept everything.
    """
    try:
        return not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # a protocol without runtime checks, or a typed dictionary
        return True


def _is_kind(origin: Any, base: type) -> bool:
    return isinstance(origin, type) and issubclass(origin, base)
