"""Read a YAML file, a shipped name or a stored dictionary into a validated ``RunConfig``."""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from uumamba.config.run_config import RunConfig
from uumamba.runtime.errors import UsageError, require


def shipped_configs() -> list[str]:
    """List the names of the configurations in the package."""
    names = (entry.name for entry in _shipped_folder().iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def read_config(config: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration; nothing is built (see :meth:`RunConfig.check`).

    Args:
        config: a YAML file, or the name of a shipped configuration, such as ``acdc_cpu``.
        overrides: ``"optim.rho=0.1"`` and the like, applied before validation; values are YAML.

    Raises:
        UsageError: no such file or name, a YAML error, an unknown key, a value out of range.

    Example:
        >>> read_config("demo", ["optim.rho=0.1"]).optim.rho
        0.1
    """
    text, source = _read_text(config)
    try:
        stored = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # an impossible date is a ValueError
        raise UsageError(source, got=" ".join(str(error).split()), expected="valid YAML") from None
    require(isinstance(stored, dict), source, got=type(stored).__name__, expected="a mapping of a run's keys")
    for override in overrides:
        _apply(stored, override)
    return validate(stored, source=source)


def validate(stored: Mapping[str, Any], *, source: str) -> RunConfig:
    """Validate the values of a configuration.

    Args:
        stored: the keys of a run.
        source: name of the configuration in errors.

    Raises:
        UsageError: the first wrong key.
    """
    try:
        return RunConfig.model_validate(stored)
    except ValidationError as error:
        raise _first_error(error, stored, source) from None


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
        require(isinstance(section, dict), "--set", got=override, expected=f"a group of keys at {parent}, not a value")
    try:
        section[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise UsageError("--set", got=override, expected="a value in valid YAML") from None


def _first_error(error: ValidationError, stored: Mapping[str, Any], source: str) -> UsageError:
    """Turn the first of pydantic's errors into ours."""
    first, *others = error.errors(include_url=False)
    key = ".".join(str(part) for part in first["loc"] if not _is_union_tag(part, stored, first["loc"]))
    fix = f"correct {source}{f'; {len(others)} more keys are wrong' if others else ''}"
    context = first.get("ctx", {})
    match first["type"]:
        case "extra_forbidden":
            return UsageError(key, got="an unknown key", expected=_nearest(first), fix=fix)
        case "missing":
            return UsageError(key, got="nothing", expected="a value", fix=fix)
        case "union_tag_invalid":
            return UsageError(f"{key}.name", got=context["tag"], expected=f"one of {context['expected_tags']}", fix=fix)
        case "value_error" if isinstance(context["error"], UsageError):
            return context["error"].within(key)
    return UsageError(key, got=first.get("input"), expected=_expected(first["msg"]), fix=fix)


def _expected(message: str) -> str:
    message = message.removeprefix("Value error, ").removeprefix("Input should be ")
    return message[0].lower() + message[1:]


def _is_union_tag(part: Any, stored: Mapping[str, Any], location: Sequence[Any]) -> bool:
    """Whether a part of pydantic's location is the tag of a union (``optim.SAM.rho``) and not a YAML key."""
    section: Any = stored
    for step in location[: location.index(part)]:
        section = section.get(step, section) if isinstance(section, Mapping) else section
    return isinstance(section, Mapping) and section.get("name") == part


def _nearest(problem: Any) -> str:
    """Similar keys of the same section, otherwise the section that has the key, otherwise all keys of the section."""
    *section, key = map(str, problem["loc"])
    own = list(dict.fromkeys(name for model in _models_at(section) for name in _fields(model)))
    near = difflib.get_close_matches(key, own, n=1, cutoff=0.8)
    near = near or [name for name in own if len(key) > 2 and (key in name or name in key)]
    known = _known_keys(RunConfig)
    if not near and key in known:
        return f"it {' or '.join(sorted(known[key]))}"
    return " or ".join(near or difflib.get_close_matches(key, own, n=1) or [f"one of {', '.join(own)}"])


def _models_at(section: Sequence[str]) -> list[type[BaseModel]]:
    """The models that a section of pydantic's location may mean; several only in a union without a tag."""
    models: list[type[BaseModel]] = [RunConfig]
    for step in section:
        inner = [part for each in models if step in _fields(each) for part in _models_in(_fields(each)[step])]
        tagged = [each for each in models if "name" in _fields(each) and step in get_args(_fields(each)["name"])]
        models = inner or tagged or models
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    """Annotation of each field, by its YAML key."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _known_keys(annotation: Any, section: str = "") -> dict[str, set[str]]:
    """Every key of a run's configuration, with the sections that have it."""
    known: dict[str, set[str]] = {}
    for model in _models_in(annotation):
        for name, part in _fields(model).items():
            known.setdefault(name, set()).add(f"in {section}" if section else "at the top level")
            for key, sections in _known_keys(part, f"{section}.{name}".removeprefix(".")).items():
                known.setdefault(key, set()).update(sections)
    return known
