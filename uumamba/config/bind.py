"""Parts of a configuration, checked by the signatures of their constructors."""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import core_schema

from uumamba.config.registry import KINDS, Kind
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.options import describe, is_data

REQUIRED = inspect.Parameter.empty
UNKNOWN = "an unknown key"


@dataclass(frozen=True)
class Option:
    """One option of a part, as its constructor declares it.

    Attributes:
        annotation: its type and range.
        default: its default, or ``REQUIRED``.
        nested: kind of the part that it holds, if any.
        is_argument: whether the constructor takes it; the other options of a section are read by the run.
    """

    annotation: Any
    default: Any
    nested: str | None = None
    is_argument: bool = True


@dataclass(frozen=True)
class Part:
    """A named part of a run, with all its options.

    Options are attributes as well: ``part.rho`` is ``part.options["rho"]``.
    """

    kind: str
    name: str
    options: Mapping[str, Any]

    def __getattr__(self, key: str) -> Any:
        try:
            return self.__dict__["options"][key]
        except KeyError:
            raise AttributeError(f"{self.__dict__.get('name', 'Part')} has no option {key}") from None

    def bind(self) -> partial[Any]:
        """Bind the options to the constructor.

        Parts in the options are made, or bound if the run supplies arguments.
        """
        known = list_options(self.kind, self.name)
        return partial(
            load_constructor(self.kind, self.name),
            **{key: _make(key, self.options[key]) for key, option in known.items() if option.is_argument},
        )

    def as_json(self) -> dict[str, Any]:
        """Convert name and options to JSON values."""
        named = {} if KINDS[self.kind].only else {"name": self.name}
        return named | {key: _to_json(value) for key, value in self.options.items()}


def bind(kind: str, name: str, options: Mapping[str, Any], path: str = "") -> partial[Any]:
    """Check a part's options and bind them to its constructor.

    Args:
        kind: a key of ``KINDS``.
        name: the part's name in the registry.
        options: by name; missing ones get the constructor's defaults.
        path: place of the section in the configuration, for errors.

    Raises:
        UsageError: the name or an option is unknown, an option is missing, or a value is of a wrong type or out of
            range.

    Example:
        >>> bind("optim", "SAM", {"rho": 0.1, "base": {"name": "SGD"}}).keywords["rho"]
        0.1
        >>> bind("optim", "SAM", {"rho": -1, "base": {"name": "SGD"}}, path="optim")
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: optim.rho: got -1, expected a finite number of at least 0.
    """
    named = {} if KINDS[kind].only else {"name": name}
    return read_part(kind, named | dict(options), path).bind()


def read_part(kind: str, stored: Any, path: str = "") -> Part:
    """Read a section of a configuration as a part of a kind.

    Args:
        kind: a key of ``KINDS``.
        stored: mapping with ``name`` and options; a part is returned as it is.
        path: place of the section in the configuration, for errors.

    Raises:
        UsageError: as for :func:`bind`.
    """
    if isinstance(stored, Part) and stored.kind == kind:
        return stored
    require(isinstance(stored, Mapping), path, got=stored, expected="a mapping of options")
    given = dict(stored)
    name = check_name(kind, KINDS[kind].only or given.pop("name", KINDS[kind].default), _join(path, "name"))
    known = list_options(kind, name)
    for key in given:
        if key not in known:
            raise UnknownKeyError(_join(path, key), valid=[*([] if KINDS[kind].only else ["name"]), *known])
    return Part(kind, name, {key: _read_option(each, key, given, path) for key, each in known.items()})


def check_name(kind: str, name: Any, path: str = "") -> str:
    """Return the name of a part, without importing the part.

    Raises:
        UsageError: the kind has no part of this name.

    Example:
        >>> check_name("optim", "GSAMM", "optim.name")
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: optim.name: got GSAMM, expected GSAM.
    """
    known = list(KINDS[kind].parts)
    require(name in known, path, got=name or "nothing", expected=suggest_key(str(name or ""), known))
    return str(name)


@dataclass(frozen=True)
class PartOf:
    """Annotation of a model's field that holds a part: ``Annotated[Part, PartOf("optim")]``."""

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            partial(read_part, self.kind),
            serialization=core_schema.plain_serializer_function_ser_schema(Part.as_json),
        )


def supply(make: Callable[..., Any], **values: Any) -> Any:
    """Call a bound part with the run's values that it takes."""
    return make(**{name: value for name, value in values.items() if takes(make, name)})


def takes(make: Callable[..., Any], name: str) -> bool:
    """Return whether a constructor has an argument of this name."""
    return name in inspect.signature(make).parameters


def load_constructor(kind: str, name: str) -> Callable[..., Any]:
    """Import a part's constructor."""
    return cast(Callable[..., Any], resolve_name(KINDS[kind].parts[name]))


@cache
def list_options(kind: str, name: str) -> dict[str, Option]:
    """List the options of a part in the order of stored sections."""
    rules, constructor = KINDS[kind], load_constructor(kind, name)
    unused = getattr(constructor, "unused_options", ())
    arguments = _find_options(constructor, rules)
    own = {} if rules.section is None else _find_options(resolve_name(rules.section), rules)
    found = arguments | {key: replace(option, is_argument=key in arguments) for key, option in own.items()}
    ordered = [*(key for key in rules.order if key in found), *(key for key in found if key not in rules.order)]
    return {key: found[key] for key in ordered if key not in unused}


def read_value(annotation: Any, value: Any, path: str) -> Any:
    """Convert a value of YAML to a type, within its range.

    Lists become tuples, and text that is a number a number. True and False are no numbers.

    Raises:
        UsageError: the value is of another type or out of range.
    """
    value = _read_none(annotation, value)
    if not mentions_bool(annotation):
        refuse_bool(value, path, describe(annotation))
    try:
        return _freeze(_adapter(annotation).validate_python(value))
    except ValidationError as error:
        first, is_mapping = error.errors(include_url=False)[0], isinstance(value, Mapping)
        place = [str(part) for part in first["loc"] if isinstance(part, int) or (is_mapping and part in value)]
        single = _descend(annotation, len(place))
        raise UsageError(_join(path, *place), got=_freeze(first["input"]), expected=describe(single)) from None


class UnknownKeyError(UsageError):
    """Key that no option of a section has.

    Args:
        key: the key with its section.
        valid: the section's keys.
        elsewhere: sections that have such a key.
    """

    def __init__(self, key: str, *, valid: Collection[str], elsewhere: Collection[str] = (), fix: str = "") -> None:
        expected = suggest_key(key.rpartition(".")[2], valid, elsewhere)
        super().__init__(key, got=UNKNOWN, expected=expected, fix=fix)
        self.valid = tuple(valid)

    def within(self, section: str) -> UsageError:
        return UnknownKeyError(super().within(section).key, valid=self.valid, fix=self.fix)


def suggest_key(key: str, valid: Collection[str], elsewhere: Collection[str] = ()) -> str:
    """Describe valid keys: similar ones, or sections with the key, or all.

    Example:
        >>> suggest_key("roh", ["rho", "eta"])
        'rho'
    """
    similar = difflib.get_close_matches(key, valid, n=1, cutoff=0.8)
    similar = similar or [name for name in valid if len(key) > 2 and (key in name or name in key)]
    if not similar and elsewhere:
        return f"{key} {' or '.join(elsewhere)}"
    return " or ".join(similar or difflib.get_close_matches(key, valid, n=1) or [f"one of {', '.join(valid)}"])


def _find_options(constructor: Callable[..., Any], kind: Kind) -> dict[str, Option]:
    """Find the options of a constructor, those of its ``**keywords`` included."""
    found: dict[str, Option] = {}
    for made in list_signatures(constructor):
        hints = get_type_hints(made, include_extras=True)
        for name, each in inspect.signature(made).parameters.items():
            if name in found or name in kind.supplied or each.kind in (each.VAR_KEYWORD, each.VAR_POSITIONAL):
                continue
            if name in kind.nested or (name in hints and is_data(hints[name])):
                found[name] = Option(hints.get(name), each.default, kind.nested.get(name))
    return found


def list_signatures(constructor: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yield a constructor's function, and those that take its ``**keywords``."""
    source = getattr(constructor, "keyword_source", None)
    if not isinstance(constructor, type) or source is not None:
        yield vars(constructor)["__init__"] if isinstance(constructor, type) else constructor
        yield from filter(None, [source])
        return
    for owner in constructor.__mro__[:-1]:
        if "__init__" in vars(owner):
            made = vars(owner)["__init__"]
            yield made
            if all(each.kind is not each.VAR_KEYWORD for each in inspect.signature(made).parameters.values()):
                return


def _read_option(option: Option, key: str, given: Mapping[str, Any], path: str) -> Any:
    place = _join(path, key)
    require(key in given or option.default is not REQUIRED, place, got="nothing", expected="a value")
    value = given.get(key, option.default)
    if option.nested is None:
        return read_value(option.annotation, value, place)
    if value is None and option.default is None:
        return None
    return read_part(option.nested, value, place)


def _make(key: str, value: Any) -> Any:
    if not isinstance(value, Part):
        return value
    try:
        return value.bind() if KINDS[value.kind].supplied else value.bind()()
    except UsageError as error:
        raise error.within(key) from None


def _to_json(value: Any) -> Any:
    if isinstance(value, Part):
        return value.as_json()
    if isinstance(value, Mapping):
        return {key: _to_json(each) for key, each in value.items()}
    return [_to_json(each) for each in value] if isinstance(value, (tuple, list)) else value


@cache
def _adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(allow_inf_nan=False))


def _read_none(annotation: Any, value: Any) -> Any:
    """Replace the text ``None`` by None where text is not valid.

    YAML reads Python's word as text.
    """
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType) and value == "None" and NoneType in inner and str not in inner:
        return None
    if isinstance(value, Mapping) and isinstance(origin, type) and issubclass(origin, Mapping):
        return {key: _read_none(inner[1], each) for key, each in value.items()}
    return value


def _freeze(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _freeze(each) for key, each in value.items()}
    return tuple(map(_freeze, value)) if isinstance(value, (list, tuple)) else value


@cache
def mentions_bool(annotation: Any) -> bool:
    """Return whether True and False are values of a type."""
    if get_origin(annotation) is Literal:
        return any(isinstance(choice, bool) for choice in get_args(annotation))
    return annotation is bool or any(mentions_bool(each) for each in get_args(annotation) if each is not Ellipsis)


def refuse_bool(value: Any, path: str, expected: str) -> None:
    """Raise for True or False, also as an element."""
    require(not isinstance(value, bool), path, got=value, expected=expected)
    if isinstance(value, (list, tuple, Mapping)):
        for key, each in value.items() if isinstance(value, Mapping) else enumerate(value):
            refuse_bool(each, _join(path, str(key)), expected)


def _descend(annotation: Any, depth: int) -> Any:
    """Return the type of elements so many levels inside a type."""
    while depth:
        origin, inner = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            annotation = inner[0]
        elif origin in (Union, UnionType):
            annotation = next(each for each in inner if get_args(each))
        else:
            annotation, depth = inner[1 if issubclass(origin, Mapping) else 0], depth - 1
    return annotation


def _join(*parts: str) -> str:
    return ".".join(filter(None, parts))
