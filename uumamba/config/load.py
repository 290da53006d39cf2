"""Validated configurations from YAML files, shipped names or stored dictionaries."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from uumamba.config.bind import PartOf, UnknownKeyError, list_options
from uumamba.config.registry import KINDS
from uumamba.config.run_config import RunConfig
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.files import describe_path
from uumamba.runtime.memory_shortage import summarize_error
from uumamba.runtime.text_files import MAX_YAML_BYTES, MAX_YAML_DEPTH, MAX_YAML_NODES, LimitError, read_limited


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
        stored = _parse_yaml(text)
    except (yaml.YAMLError, ValueError) as error:  # an impossible date is a ValueError
        raise UsageError(source, got=" ".join(str(error).split()), expected="valid YAML") from None
    require(isinstance(stored, dict), source, got=type(stored).__name__, expected="a mapping with the keys of a run")
    for override in overrides:
        _apply(stored, override)
    return validate(stored, source=source, overrides=overrides)


def validate(stored: Mapping[str, Any], *, source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Validate the keys and values of a configuration.

    Args:
        stored: the keys of a run.
        source: name of the configuration in errors.
        overrides: those already applied, which are named in errors of their keys.

    Raises:
        UsageError: the first wrong key.
    """
    try:
        return RunConfig.model_validate(stored)
    except ValidationError as error:
        raise _convert_first(error, source, overrides) from None


def _read_text(config: Path | str) -> tuple[str, str]:
    path = Path(config)
    try:
        if path.is_file():
            return read_limited(path, most=MAX_YAML_BYTES).decode("utf-8-sig"), str(path)
    except LimitError as error:
        raise UsageError(str(path), got=error, expected="a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = "binary data" if isinstance(error, UnicodeDecodeError) else str(error.strerror)
        raise UsageError(str(path), got=reason, expected="a YAML file") from None
    name = path.name.removesuffix(".yaml")
    known = shipped_configs()
    require(
        path.parent == Path(".") and name in known,
        "CONFIG",
        got=describe_path(config),
        expected=f"a YAML file or one of {', '.join(known)}",
    )
    return (_shipped_folder() / f"{name}.yaml").read_text(encoding="utf-8"), f"{name}.yaml"


def _parse_yaml(text: str) -> Any:
    """Parse YAML of a limited size, its aliases included.

    Nine aliases of nine aliases, and so on, are a few lines and billions of values.

    Raises:
        yaml.YAMLError: the text is no YAML.
        ValueError: a value is impossible, or the text exceeds a limit.
    """
    if len(text) > MAX_YAML_BYTES:
        raise LimitError(f"more than {MAX_YAML_BYTES} characters")
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and number of values before it
    sizes: dict[str, int] = {}
    count = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in {anchor for anchor, _ in open_nodes}:
                raise LimitError(f"an alias of *{event.anchor} inside of itself")
            count += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            sizes |= {anchor: count - before} if anchor else {}
        if count > MAX_YAML_NODES or len(open_nodes) > MAX_YAML_DEPTH:
            raise LimitError(f"more than {MAX_YAML_NODES} values, or {MAX_YAML_DEPTH} levels")
    _check_keys(yaml.compose(text, Loader=yaml.SafeLoader))
    return yaml.safe_load(text)


def _check_keys(root: yaml.Node | None) -> None:
    """Raise if a mapping has a key twice.

    The loader of YAML would take the last value.
    """
    nodes, seen = [root], set[int]()
    while nodes:
        node = nodes.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
            continue
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        double = next((key for key, count in counts.items() if count > 1), None)
        if double is not None:
            raise ValueError(f"the key {double} twice in line {node.start_mark.line + 1} and below")
        nodes += [value for _, value in node.value]


def _shipped_folder() -> Any:
    return resources.files("uumamba.configs")


def _apply(stored: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    require(separator and key, "--set", got=override, expected="key=value, such as optim.rho=0.1")
    *parents, last = key.split(".")
    require(all((*parents, last)), "--set", got=override, expected="a key such as optim.rho, without empty parts")
    section = stored
    for parent in parents:
        section = section.setdefault(parent, {})
        require(isinstance(section, dict), "--set", got=override, expected=f"a key of a section, unlike {parent}")
    try:
        section[last] = _parse_yaml(value)
    except (yaml.YAMLError, ValueError):
        raise UsageError("--set", got=override, expected="a value in valid YAML") from None


def _convert_first(error: ValidationError, source: str, overrides: Sequence[str]) -> UsageError:
    """Convert the first of pydantic's errors to a ``UsageError``."""
    first = error.errors(include_url=False)[0]
    key = ".".join(map(str, first["loc"]))
    cause = first.get("ctx", {}).get("error")
    wrong = cause.within(key).key if isinstance(cause, UsageError) else key
    fix = f"correct {_find_origin(wrong, source, overrides)}"
    if cause is None:
        return UsageError(key, got=first["input"], expected=first["msg"].removeprefix("Input should be "), fix=fix)
    if not isinstance(cause, UsageError):
        got = summarize_error(cause).rstrip(".")
        return UsageError(key or source, got=got, expected="values that fit each other", fix=fix)
    found = cause.within(key)
    if isinstance(found, UnknownKeyError):
        own, _, name = found.key.rpartition(".")
        sections = sorted({section for section, key in list_keys(RunConfig) if key == name})
        words = {"": "at the top level", own: f"in {own} with another name"}
        elsewhere = [words.get(section, f"in {section}") for section in sections]
        return UnknownKeyError(found.key, valid=found.valid, elsewhere=elsewhere, fix=fix)
    return UsageError(found.key, got=found.got, expected=found.expected, fix=found.fix or fix)


def _find_origin(key: str, source: str, overrides: Sequence[str]) -> str:
    """Return where a key was set: by an override, or the source.

    The override may also be one of the key's section, or of a key inside of it; the last one counts.
    """
    for override in reversed(overrides):
        name = override.partition("=")[0]
        if f"{key}.".startswith(f"{name}.") or f"{name}.".startswith(f"{key}."):
            return f"--set {override}"
    return source


def list_keys(annotation: Any, section: str = "") -> Iterator[tuple[str, str]]:
    """Yield section and key of each option.

    Args:
        annotation: a model, the mark of a part, or a type with such types inside.
        section: key of the type's section.
    """
    nested: Iterable[tuple[str, Any]] = [("", each) for each in get_args(annotation)]
    if isinstance(annotation, PartOf):
        options = [list_options(annotation.kind, name).items() for name in KINDS[annotation.kind].parts]
        nested = [(key, option.nested and PartOf(option.nested)) for each in options for key, option in each]
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.items()
        nested = [(field.alias or name, field.rebuild_annotation()) for name, field in fields]
    for key, inner in nested:
        if key:
            yield section, key
        yield from list_keys(inner, ".".join(filter(None, (section, key))))
