"""Sections of a configuration with all their keys.

They are found in the models of :mod:`uumamba.config` and in the registry.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import getdoc
from textwrap import fill
from types import NoneType
from typing import Any, cast, get_args

from pydantic import AfterValidator, BaseModel

from benchmarks.markdown import convert_markup, make_anchor
from benchmarks.reference.option_meanings import read_meanings, read_section_meanings
from benchmarks.reference.value_types import describe_values, format_value
from data_prep.reader import Reader
from uumamba.config.automatic import KERNELS, PATCH, SPACING, STRIDES
from uumamba.config.bind import REQUIRED, PartOf, check_name, list_options, load_constructor
from uumamba.config.registry import KINDS
from uumamba.config.run_config import RunConfig

MAY_BE_AUTO = (SPACING, PATCH, STRIDES, KERNELS)
PARTS = {
    "optim.base": "Optimizer of torch that makes the step.",
    "domain_generalization.perturbation": "Change of the input that makes an unknown domain.",
    "federated.topology": "Graph of the sites.",
}
"""Meanings of keys whose constructors take an object in place of a section."""
VERBS = re.compile(r"^(Make|Return|List) ")
LAYOUTS = "[scan folders](scan_folders.md)"
PYTHON = {"None": "null", "True": "true", "False": "false"}


@dataclass(frozen=True)
class Key:
    """One key of a configuration.

    Attributes:
        paths: the key with its sections; several if sections of the same kind have it.
        values: type and range.
        default: as in YAML, or ``required``.
        meaning: one sentence or more.
    """

    paths: tuple[str, ...]
    values: str
    default: str
    meaning: str

    @property
    def cells(self) -> tuple[str, ...]:
        """Cells of the key's row."""
        return ", ".join(f"`{path}`" for path in self.paths), self.values, self.default, self.meaning


@dataclass(frozen=True)
class Section:
    """Keys under one heading.

    Attributes:
        title: heading: the section's path, with names of parts if the keys are theirs alone.
        level: depth of the heading, 2 for a section of the top level.
        about: description; empty without one.
        names: description of each part by its name, if the section chooses one.
        keys: rows of the section's table.
    """

    title: str
    level: int
    about: str
    names: Mapping[str, str]
    keys: tuple[Key, ...]


def list_sections() -> Iterator[Section]:
    """Yield all sections in the order of a configuration."""
    first, *others = _list_model(RunConfig, "", 2)
    yield Section("Top level", 2, first.about, {}, first.keys)
    yield from others


def _list_model(model: type[BaseModel], path: str, level: int) -> Iterator[Section]:
    """Yield the section of a model, then those inside of it."""
    meanings = read_section_meanings(model)
    keys: list[Key] = []
    nested: list[tuple[str, Any]] = []
    for name, field in model.model_fields.items():
        key = field.alias or name
        place, annotation = _join(path, key), field.rebuild_annotation()
        inner = [each for each in _flatten(annotation) if isinstance(each, PartOf) or _is_model(each)]
        default = "required" if field.is_required() else format_value(field.get_default(call_default_factory=True))
        keys.append(Key((place,), _describe(annotation, (place,), inner), default, clean(meanings[key])))
        nested += [(place, each) for each in inner]
    about = (getdoc(model) or "").partition("\nArgs:")[0]
    names = {name: clean(summarize_reader(name)) for name in KINDS["dataset"].parts} if path == "dataset" else {}
    yield Section(path, level, wrap(about), names, tuple(keys))
    for place, each in nested:
        below = level + 1 if path else level
        yield from (
            _list_kind(each.kind, (place,), below) if isinstance(each, PartOf) else _list_model(each, place, below)
        )


def _list_kind(kind: str, paths: tuple[str, ...], level: int) -> Iterator[Section]:
    """Yield a kind's section with keys of all parts, then of some."""
    rules, title = KINDS[kind], " and ".join(paths)
    tables = {name: list_part_keys(kind, name, paths) for name in rules.parts}
    shared = _share_keys(tables)
    about = summarize(load_constructor(kind, rules.only)) if rules.only else ""
    names = {} if rules.only else {name: summarize(load_constructor(kind, name)) for name in rules.parts}
    head = [] if rules.only else [_make_name_key(kind, paths)]
    yield Section(title, level, about, names, (*head, *shared))
    known = {key.paths for key in shared}
    groups: dict[tuple[Key, ...], list[str]] = {}
    for name, table in tables.items():
        groups.setdefault(tuple(key for key in table if key.paths not in known), []).append(name)
    for keys, members in groups.items():
        if keys:
            yield Section(f"{title}: {', '.join(members)}", level + 1, "", {}, keys)
    for each, places in _find_nested(kind, paths).items():
        yield from _list_kind(each, tuple(places), level + 1)


def list_part_keys(kind: str, name: str, paths: Sequence[str]) -> list[Key]:
    """List the keys of a part, without its name."""
    meanings = read_meanings(kind, name)
    keys = []
    for key, option in list_options(kind, name).items():
        places = tuple(_join(path, key) for path in paths)
        inner = [PartOf(option.nested)] if option.nested else []
        default = "required" if option.default is REQUIRED else format_value(option.default)
        values = _describe(option.annotation, places, inner, is_optional=option.default is None)
        keys.append(Key(places, values, default, PARTS.get(places[0], clean(meanings[key]))))
    return keys


def _share_keys(tables: Mapping[str, Sequence[Key]]) -> list[Key]:
    """List keys that most tables have, with equal values and default.

    Each has its longest meaning; names of tables without the key follow.
    """
    shared: dict[tuple[str, ...], Key] = {}
    for key in (key for table in tables.values() for key in table):
        found = {name: each for name, table in tables.items() for each in table if each.paths == key.paths}
        is_same = len({(each.values, each.default) for each in found.values()}) == 1
        if is_same and 2 * len(found) > len(tables):
            longest = max(found.values(), key=lambda each: len(each.meaning))
            others = " or ".join(f"`{name}`" for name in tables if name not in found)
            meaning = f"{longest.meaning} Not with {others}." if others else longest.meaning
            shared.setdefault(key.paths, replace(longest, meaning=meaning))
    return list(shared.values())


def _find_nested(kind: str, paths: Sequence[str]) -> dict[str, list[str]]:
    """Find the kinds of a kind's options, with the options' paths."""
    found: dict[str, list[str]] = {}
    for name in KINDS[kind].parts:
        for key, option in list_options(kind, name).items():
            if option.nested is not None:
                places = found.setdefault(option.nested, [])
                places += [place for place in (_join(path, key) for path in paths) if place not in places]
    return found


def _make_name_key(kind: str, paths: Sequence[str]) -> Key:
    default = KINDS[kind].default
    names = " or ".join(f"`{name}`" for name in KINDS[kind].parts)
    places = tuple(_join(path, "name") for path in paths)
    return Key(places, names, f"`{default}`" if default else "required", "The part; see the table above.")


def _describe(annotation: Any, places: Sequence[str], inner: Sequence[Any], *, is_optional: bool = False) -> str:
    """Describe the values of a key; sections are linked."""
    if inner:
        may_be_null = is_optional or NoneType in _flatten(annotation)
        title = "net.coarse and net.fine" if places[0].startswith("net.") else places[0]
        return f"[section](#{make_anchor(title)}){' or null' * may_be_null}"
    kinds = [kind for each in _flatten(annotation) if (kind := _find_named_kind(each))]
    words = describe_values(annotation)
    if kinds:
        names = " or ".join(f"`{name}`" for name in KINDS[kinds[0]].parts)
        words = f"list of ({names})" if "list" in words else names
    return f"{words} or `auto`" if places[0] in MAY_BE_AUTO else words


def _find_named_kind(metadata: Any) -> str | None:
    """Return the kind whose names a validator accepts."""
    check = metadata.func if isinstance(metadata, AfterValidator) else None
    return str(check.args[0]) if isinstance(check, partial) and check.func is check_name else None


def _flatten(annotation: Any) -> Iterator[Any]:
    yield annotation
    for each in get_args(annotation):
        yield from _flatten(each)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def summarize(made: Any) -> str:
    """Return the first line of a docstring, without a function's verb."""
    return clean(VERBS.sub("", (getdoc(made) or "").partition("\n\n")[0]))


def summarize_reader(name: str) -> str:
    """Describe a data set's reader."""
    reader = cast(Reader, load_constructor("dataset", name))
    if reader.reads_any:
        return "any folder of scans, as described in [scan folders](scan_folders.md)"
    return f"{reader.manifest_name}, {reader.official_split}" if reader.official_split else reader.manifest_name


def wrap(text: str) -> str:
    """Return a docstring's paragraphs in Markdown, wrapped."""
    paragraphs = (clean(each) for each in text.strip().split("\n\n"))
    return "\n\n".join(fill(each, 120, break_long_words=False, break_on_hyphens=False) for each in paragraphs)


def clean(text: str) -> str:
    """Return a docstring's text as one line of Markdown, with YAML's constants."""
    words = convert_markup(" ".join(text.split())).replace("`docs/reference/scan_folders.md`", LAYOUTS)
    words = re.sub(r"\b(None|True|False)\b", lambda found: PYTHON[found[0]], words)
    first = words.partition(" ")[0].rstrip(".,:")
    return words[:1].upper() + words[1:] if first.islower() and (len(first) > 1 or first == "a") else words


def _join(*parts: str) -> str:
    return ".".join(filter(None, parts))
