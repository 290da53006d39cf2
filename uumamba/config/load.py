"""Validated configurations from YAML files, shipped names or stored dictionaries."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from uumamba.config.bind import PartOf, UnknownKeyError, list_options
from uumamba.config.registry import KINDS
from uumamba.config.run_config import RunConfig
from uumamba.runtime.errors import UsageError, require


def shipped_configs() -> list[str]:
    """List the names of the configurations in the package."""
    names = (entry.name for entry in _shipped_folder().iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def read_config(config: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration without building a part; see :meth:`RunConfig.check`.

    Args:
        config: a YAML file, or the name of a shipped configuration, such as ``acdc_cpu``.
        overrides: such as ``"optim.rho=0.1"``, applied before validation; values are YAML.

    Raises:
        UsageError: the file or name does not exist, is no valid YAML, or has an unknown key or a wrong value.

    Example:
        >>> read_config("demo", ["optim.rho=0.1"]).optim.rho
        0.1
    """
    text, source = _read_text(config)
    try:
        stored = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # an impossible date is a ValueError
        raise UsageError(source, got=" ".join(str(error).split()), expected="valid YAML") from None
    require(isinstance(stored, dict), source, got=type(stored).__name__, expected="a mapping with the keys of a run")
    for override in overrides:
        _apply(stored, override)
    return validate(stored, source=source)


def validate(stored: Mapping[str, Any], *, source: str) -> RunConfig:
    """Validate the keys and values of a configuration.

    Args:
        stored: the keys of a run.
        source: name of the configuration in errors.

    Raises:
        UsageError: the first wrong key.
    """
    try:
        return RunConfig.model_validate(stored)
    except ValidationError as error:
        raise _convert_first(error, source) from None


def _read_text(config: Path | str) -> tuple[str, str]:
    path = Path(config)
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = "binary data" if isinstance(error, UnicodeDecodeError) else str(error.strerror)
        raise UsageError(str(path), got=reason, expected="a YAML file") from None
    name = path.name.removesuffix(".yaml")
    known = shipped_configs()
    require(
        path.parent == Path(".") and name in known,
        "CONFIG",
        got=config,
        expected=f"a YAML file or one of {', '.join(known)}",
    )
    return (_shipped_folder() / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml"


def _shipped_folder() -> Any:
    return resources.files("uumamba.configs")


def _apply(stored: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    require(separator and key, "--set", got=override, expected="key=value, such as optim.rho=0.1")
    *parents, last = key.split(".")
    section = stored
    for parent in parents:
        section = section.setdefault(parent, {})
        require(isinstance(section, dict), "--set", got=override, expected=f"a key of a section, unlike {parent}")
    try:
        section[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise UsageError("--set", got=override, expected="a value in valid YAML") from None


def _convert_first(error: ValidationError, source: str) -> UsageError:
    """Convert the first of pydantic's errors to a ``UsageError``."""
    first, *others = error.errors(include_url=False)
    key = ".".join(map(str, first["loc"]))
    parent, _, last = key.rpartition(".")
    fix = f"correct {source}{f'; {len(others)} more keys are wrong' if others else ''}"
    context = first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            valid = list(_list_fields(dict(_list_models(RunConfig))[parent]))
            return UnknownKeyError(key, valid=valid, elsewhere=_find_sections(last), fix=fix)
        case "missing":
            return UsageError(key, got="nothing", expected="a value", fix=fix)
        case "value_error" if isinstance(context["error"], UsageError):
            found = context["error"].within(key)
            if isinstance(found, UnknownKeyError):
                name = found.key.rpartition(".")[2]
                return UnknownKeyError(found.key, valid=found.valid, elsewhere=_find_sections(name), fix=fix)
            return UsageError(found.key, got=found.got, expected=found.expected, fix=found.fix or fix)
    return UsageError(key, got=first.get("input"), expected=_shorten(first["msg"]), fix=fix)


def _shorten(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{'a number ' if message.startswith(('greater', 'less')) else ''}{message[0].lower()}{message[1:]}"


def _find_sections(key: str) -> list[str]:
    """Name the sections of a run that have a key."""
    found = {section for section, model in _list_models(RunConfig) if key in _list_fields(model)}
    found |= {
        section
        for section, kind in _list_kinds(RunConfig)
        if any(key in list_options(kind, n) for n in KINDS[kind].parts)
    }
    return sorted(f"in {section}" if section else "at the top level" for section in found)


def _list_models(model: type[BaseModel], section: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the YAML key and model of each section."""
    yield section, model
    for key, field in _list_fields(model).items():
        for inner in _find_models(field.annotation):
            yield from _list_models(inner, f"{section}.{key}".removeprefix("."))


def _list_kinds(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield the key and kind of each part, nested parts included."""
    for key, field in _list_fields(model).items():
        for kind in _find_part_kinds([*field.metadata, field.annotation]):
            yield key, kind
            for inner, nested in KINDS[kind].nested.items():
                yield f"{key}.{inner}", nested


def _find_part_kinds(annotations: Iterable[Any]) -> list[str]:
    """List the kinds in a field's annotations, also of an optional part."""
    found = []
    for each in annotations:
        inner = getattr(each, "__metadata__", ()) if get_origin(each) is Annotated else get_args(each)
        found += [each.kind] if isinstance(each, PartOf) else _find_part_kinds(inner)
    return found


def _list_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _find_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _find_models(part)]
