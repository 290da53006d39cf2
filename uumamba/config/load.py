"""From a YAML file, a shipped name or a stored dictionary to a validated run."""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from uumamba.config.run import RunConfig
from uumamba.runtime.errors import UsageError


def shipped_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _shipped_folder().iterdir() if _is_yaml(entry.name))


def read_config(config: Path | str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a run's configuration.

    Args:
        config: a YAML file, or the name of a shipped one, such as ``acdc_cpu``.
        overrides: ``"optim.rho=0.1"`` and the like, applied before validation; values are YAML.

    Raises:
        UsageError: no such file or name, a YAML error, an unknown key, a value out of range.

    Example:
        >>> read_config("demo", ["optim.rho=0.1"]).optim.rho
        0.1
    """
    text, source = _text_of(config)
    try:
        stored = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # an impossible date is a ValueError
        raise UsageError(f"{source} is not valid YAML ({' '.join(str(error).split())}); correct it.") from None
    if not isinstance(stored, dict):
        raise UsageError(f"{source} holds {type(stored).__name__}, expected a mapping of a run's keys.")
    for override in overrides:
        _apply(stored, override)
    return validate(stored, source=source)


def validate(stored: Mapping[str, Any], *, source: str) -> RunConfig:
    """Validate a configuration that was read or stored, with one sentence for what is wrong first."""
    try:
        return RunConfig.model_validate(stored)
    except ValidationError as error:
        raise UsageError(f"{source}: {_sentence(error, stored)}") from None


def _text_of(config: Path | str) -> tuple[str, str]:
    path = Path(config)
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8"), str(path)
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UsageError(f"{path} cannot be read as a configuration ({reason}); give a YAML file.") from None
    if path.parent == Path(".") and path.name.removesuffix(".yaml") in shipped_configs():
        name = path.name.removesuffix(".yaml") + ".yaml"
        return (_shipped_folder() / name).read_text(encoding="utf-8"), name
    raise UsageError(f"There is no configuration {config}; give a YAML file or one of {', '.join(shipped_configs())}.")


def _shipped_folder() -> Any:
    return resources.files("uumamba.configs")


def _is_yaml(name: str) -> bool:
    return name.endswith(".yaml")


def _apply(stored: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise UsageError(f"--set {override} is not of the form key=value, such as optim.rho=0.1.")
    *parents, last = key.split(".")
    place = stored
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise UsageError(f"--set {override}: {parent} is a value, not a group of keys.")
    try:
        place[last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):
        raise UsageError(f"--set {override}: the value is not YAML; correct it.") from None


def _sentence(error: ValidationError, stored: Mapping[str, Any]) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    rest = f" ({len(problems) - 1} more after it)" if len(problems) > 1 else ""
    key = ".".join(str(part) for part in first["loc"] if not _is_union_tag(part, stored, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"{key} is not a known key{_nearest(first)}; remove or correct it{rest}."
    if first["type"] == "missing":
        return f"{key} is missing; add it{rest}."
    found = first.get("input")
    shown = f", found {found!r}" if isinstance(found, str | int | float | bool | list | tuple) else ""
    prefix = f"{key}: " if key else ""
    return f"{prefix}{first['msg'].removeprefix('Value error, ')}{shown}; correct it{rest}."


def _is_union_tag(part: Any, stored: Mapping[str, Any], location: Sequence[Any]) -> bool:
    """Whether a part of pydantic's location is the tag of a union (``optim.SAM.rho``), which no YAML key shows."""
    place: Any = stored
    for step in location[: location.index(part)]:
        place = place.get(step, place) if isinstance(place, Mapping) else place
    return isinstance(place, Mapping) and place.get("name") == part


def _nearest(problem: Any) -> str:
    """The keys of the same section that resemble it, else where such a key stands, else all keys of the section."""
    *section, key = map(str, problem["loc"])
    own = list(dict.fromkeys(name for model in _models_at(section) for name in _fields(model)))
    known = _known_keys(RunConfig)
    near = difflib.get_close_matches(key, own, n=1, cutoff=0.8)
    near = near or [name for name in own if len(key) > 2 and (key in name or name in key)]
    if not near and key in known:
        return f" here (it stands {' or '.join(sorted(known[key]))})"
    if near := near or difflib.get_close_matches(key, own, n=1):
        return f" (did you mean {', '.join([*near[:-2], ' or '.join(near[-2:])])}?)"
    return f" (known there are {', '.join(own)})"


def _models_at(section: Sequence[str]) -> list[type[BaseModel]]:
    """The models that pydantic's location of a section may mean: one, but where a union says no tag."""
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
    """What each field is annotated with, by its key in the YAML."""
    return {field.alias or name: field.annotation for name, field in model.model_fields.items()}


def _known_keys(annotation: Any, place: str = "") -> dict[str, set[str]]:
    """Every key that any part of a run's configuration knows, with where it stands, for the suggestion in an error."""
    known: dict[str, set[str]] = {}
    for model in _models_in(annotation):
        for name, part in _fields(model).items():
            known.setdefault(name, set()).add(f"in {place}" if place else "outermost")
            for key, places in _known_keys(part, f"{place}.{name}".removeprefix(".")).items():
                known.setdefault(key, set()).update(places)
    return known
