"""Types and ranges of options, and the one reader of their values."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from uumamba.runtime.errors import UsageError


@dataclass(frozen=True)
class Limit:
    """Limit of an ``Annotated`` type.

    Attributes:
        words: description of valid values, after the type's name.
        holds: returns whether a value is valid.
    """

    words: str
    holds: Callable[[Any], bool]


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
SpatialDims = Annotated[int, AT_LEAST_2, AT_MOST_3]

Made = TypeVar("Made", bound=Callable[..., Any])
_NAMES = {
    float: "a finite number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    NoneType: "None",
}


def check_options(made: Made) -> Made:
    """Make a constructor check its arguments by their annotations.

    Numbers are finite and within the range of an ``Annotated`` type, True and False are no numbers, and choices are
    those of a ``Literal``. So are elements of sequences and mappings. Types that are no data, such as
    networks, are not checked. The signature stays as it is.

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
    def annotations() -> tuple[list[str], dict[str, Any]]:
        parameters = inspect.signature(made).parameters.values()
        hints = get_type_hints(made, include_extras=True)
        named = [each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)]
        return named, {name: hints[name] for name in named if name in hints}

    @wraps(made)
    def checked(*args: Any, **kwargs: Any) -> Any:
        names, hints = annotations()
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if name in hints:
                read_value(hints[name], value, name)
        return made(*args, **kwargs)

    return cast(Made, checked)


def read_value(annotation: Any, value: Any, key: str, *, from_yaml: bool = False) -> Any:
    """Check a value by its type and range, and convert it to the type.

    Numbers are finite, and True and False are no numbers. Sequences become tuples. Values of types that are no data
    stay as they are.

    Args:
        annotation: the type.
        value: the value.
        key: name of the value, for errors; elements of the value have its key and their own.
        from_yaml: accept text that is a number, whole numbers such as 2.0, and the text ``None``, as YAML reads them.

    Raises:
        UsageError: the value is of another type or out of range.

    Example:
        >>> read_value(tuple[Probability, ...] | None, [0, "1e-3"], "p", from_yaml=True)
        (0.0, 0.001)
        >>> read_value(tuple[Probability, ...] | None, [0, 1.5], "p")
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: p.1: got 1.5, expected a finite number of at least 0 and of at most 1.
    """
    try:
        return _convert(annotation, value, from_yaml)
    except _WrongValue as wrong:
        got = tuple(wrong.value) if from_yaml and isinstance(wrong.value, list) else wrong.value
        raise UsageError(".".join((key, *wrong.place)), got=got, expected=describe(wrong.annotation)) from None


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
    return _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))


class _WrongValue(Exception):
    """Value that is not of a type, with its place in the value of an option."""

    def __init__(self, annotation: Any, value: Any, place: tuple[str, ...] = ()) -> None:
        self.annotation, self.value, self.place = annotation, value, place


def _convert(annotation: Any, value: Any, from_yaml: bool) -> Any:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _convert_in_range(annotation, value, from_yaml)
    if origin in (Union, UnionType):
        return _convert_to_one(annotation, value, from_yaml)
    if origin is Literal:
        return _convert_choice(annotation, value)
    if annotation in _NAMES:
        return _convert_scalar(annotation, value, from_yaml)
    if _is_kind(origin, Sequence) or _is_kind(origin, Mapping):
        return _convert_elements(annotation, value, from_yaml)
    return value


def _convert_choice(annotation: Any, value: Any) -> Any:
    if not any(type(value) is type(choice) and value == choice for choice in get_args(annotation)):
        raise _WrongValue(annotation, value)
    return value


def _convert_elements(annotation: Any, value: Any, from_yaml: bool) -> Any:
    origin, inner = get_origin(annotation), get_args(annotation)
    if _is_kind(origin, Mapping) and isinstance(value, Mapping):
        names = [_convert(inner[0], name, from_yaml) for name in value]
        return {name: _convert_element(inner[1], value[name], name, from_yaml) for name in names}
    if _is_kind(origin, Sequence) and isinstance(value, Sequence) and not isinstance(value, str):
        types = inner if origin is tuple and inner[-1] is not Ellipsis else inner[:1] * len(value)
        if len(types) == len(value):
            each = enumerate(zip(types, value, strict=True))
            return tuple(_convert_element(kind, element, place, from_yaml) for place, (kind, element) in each)
    raise _WrongValue(annotation, value)


def _convert_in_range(annotation: Any, value: Any, from_yaml: bool) -> Any:
    kind, *limits = get_args(annotation)
    try:
        found = _convert(kind, value, from_yaml)
    except _WrongValue as wrong:
        raise wrong if wrong.place else _WrongValue(annotation, wrong.value) from None
    if not all(limit.holds(found) for limit in limits if isinstance(limit, Limit)):
        raise _WrongValue(annotation, value)
    return found


def _convert_to_one(annotation: Any, value: Any, from_yaml: bool) -> Any:
    """Convert to the first type of a union that fits; text is text if it may be."""
    places = []
    for is_lenient in sorted({False, from_yaml}):
        for each in get_args(annotation):
            try:
                return _convert(each, value, is_lenient)
            except _WrongValue as wrong:
                places += [wrong] if wrong.place else []
    raise places[-1] if places else _WrongValue(annotation, value)


def _convert_scalar(kind: type, value: Any, from_yaml: bool) -> Any:
    found = _parse(value) if from_yaml and kind is not str and isinstance(value, str) else value
    if kind in (bool, str, NoneType):
        if isinstance(found, kind):
            return found
    elif isinstance(found, Real) and not isinstance(found, bool) and abs(found) <= sys.float_info.max:
        is_whole = isinstance(found, Integral) or (from_yaml and float(found).is_integer())
        if kind is float or is_whole:
            return kind(found)
    raise _WrongValue(kind, value)


def _parse(text: str) -> float | str | None:
    try:
        return None if text == "None" else float(text)
    except ValueError:
        return text


def _convert_element(annotation: Any, value: Any, place: Any, from_yaml: bool) -> Any:
    try:
        return _convert(annotation, value, from_yaml)
    except _WrongValue as wrong:
        raise _WrongValue(wrong.annotation, wrong.value, (str(place), *wrong.place)) from None


def _is_kind(origin: Any, base: type) -> bool:
    return isinstance(origin, type) and issubclass(origin, base)
