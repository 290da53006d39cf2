"""Ranges of options, and constructors that check their arguments by them."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from uumamba.runtime.errors import UsageError


@dataclass(frozen=True)
class Limit:
    """Limit of an ``Annotated`` type.

    Constructors check it, and pydantic in sections of YAML.

    Attributes:
        words: description of valid values, after the type's name.
        holds: returns whether a value is valid.
    """

    words: str
    holds: Callable[[Any], bool]

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema  # loaded by whoever calls this

        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        if not self.holds(value):
            raise ValueError(self.words)
        return value


AT_LEAST_0 = Limit("of at least 0", lambda value: value >= 0)
AT_LEAST_1 = Limit("of at least 1", lambda value: value >= 1)
AT_LEAST_2 = Limit("of at least 2", lambda value: value >= 2)
ABOVE_0 = Limit("above 0", lambda value: value > 0)
AT_MOST_1 = Limit("of at most 1", lambda value: value <= 1)
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
            if name in hints and not fits(hints[name], value):
                _raise_wrong(hints[name], value, name)
        return made(*args, **kwargs)

    return cast(Made, checked)


def fits(annotation: Any, value: Any) -> bool:
    """Return whether a value is of a type and within its range.

    Example:
        >>> fits(Probability, 0.5), fits(Probability, float("nan")), fits(PositiveInt, True)
        (True, False, False)
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return fits(inner[0], value) and all(limit.holds(value) for limit in inner[1:] if isinstance(limit, Limit))
    if origin in (Union, UnionType):
        return any(fits(each, value) for each in inner)
    if origin is Literal:
        return any(value is choice or (type(value) is type(choice) and value == choice) for choice in inner)
    if annotation is float:
        return isinstance(value, Real) and not isinstance(value, bool) and -math.inf < float(value) < math.inf
    if annotation is int:
        return isinstance(value, Integral) and not isinstance(value, bool)
    if annotation in (bool, str, NoneType):
        return isinstance(value, annotation)
    if _is_kind(origin, Sequence):
        if isinstance(value, str) or not isinstance(value, Sequence):
            return False
        types = inner if origin is tuple and inner[-1] is not Ellipsis else inner[:1] * len(value)
        return len(types) == len(value) and all(map(fits, types, value))
    if _is_kind(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(each, part) for pair in value.items() for each, part in zip(inner, pair, strict=True)
        )
    return True


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


def _raise_wrong(annotation: Any, value: Any, key: str) -> NoReturn:
    """Raise for a value, or the first wrong one of a mapping."""
    if isinstance(value, Mapping) and _is_kind(get_origin(annotation), Mapping):
        element = get_args(annotation)[1]
        for name, each in value.items():
            if not fits(element, each):
                _raise_wrong(element, each, f"{key}.{name}")
    raise UsageError(key, got=value, expected=describe(annotation))


def _is_kind(origin: Any, base: type) -> bool:
    return isinstance(origin, type) and issubclass(origin, base)
