"""Parts of a configuration, checked by the signatures of their constructors."""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pkgutil import resolve_name
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from uumamba.config.registry import KINDS, Kind
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.options import is_data, read_value

REQUIRED = inspect.Parameter.empty
UNKNOWN = "an unknown key"
Made = TypeVar("Made", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """One option of a part, as its constructor declares it.

    Attributes:
        annotation: its type and range.
        find_default: returns its default, or ``REQUIRED``.
        nested: kind of the part that it holds, if any.
        is_argument: whether the constructor takes it; the other options of a section are read by the run.
    """

    annotation: Any
    find_default: Callable[[], Any]
    nested: str | None = None
    is_argument: bool = True

    @property
    def default(self) -> Any:
        return self.find_default()


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
    rules = KINDS[kind]
    name = check_name(kind, rules.only or stored.get("name", rules.default), _join(path, "name"))
    known = list_options(kind, name)
    required = [key for key, option in known.items() if key not in stored and option.default is REQUIRED]
    check_keys(stored, [*([] if rules.only else ["name"]), *known], required=required, path=path)
    return Part(kind, name, {key: _read_option(each, key, stored, path) for key, each in known.items()})


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


def check_keys(given: Mapping[str, Any], valid: Collection[str], *, required: Collection[str], path: str = "") -> None:
    """Raise for an unknown key of a section, or a missing one."""
    for key in given:
        if key not in valid:
            raise UnknownKeyError(_join(path, str(key)), valid=valid)
    for key in required:
        require(key in given, _join(path, key), got="nothing", expected="a value")


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


def read_default(constructor: Callable[..., Any] | str, name: str) -> Any:
    """Read the default of a constructor's argument; ``REQUIRED`` without one."""
    made = resolve_name(constructor) if isinstance(constructor, str) else constructor
    found = inspect.signature(made).parameters.get(name)
    return REQUIRED if found is None else found.default


def declare(**properties: Any) -> Callable[[Made], Made]:
    """Declare properties of a part's function, as class attributes do.

    Args:
        properties: ``library``, the import path of a constructor with the defaults of keyword-only options without one;
            or ``find_divisor`` and ``reads_values`` of a network, see :mod:`uumamba.config.net`.
    """

    def add(made: Made) -> Made:
        vars(made).update(properties)
        return made

    return add


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


class UnknownKeyError(UsageError):
    """Key that no option of a section has.

    Args:
        key: the key with its section.
        valid: the section's keys.
        elsewhere: sections that have such a key.
        fix: what to do.
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
                is_of_library = each.default is REQUIRED and each.kind is each.KEYWORD_ONLY
                find = partial(read_default, getattr(made, "library", made) if is_of_library else made, name)
                found[name] = Option(hints.get(name), find, kind.nested.get(name))
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
    value = given.get(key, option.default)
    if option.nested is None:
        return read_value(option.annotation, value, place, from_yaml=True)
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


def _join(*parts: str) -> str:
    return ".".join(filter(None, parts))
