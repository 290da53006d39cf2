"""Extension of griffe that converts the docstrings of uumamba before they are parsed."""

import re
from collections.abc import Iterator
from typing import Any

import griffe

from docs.hooks.rest_to_markdown import convert


class RestDocstrings(griffe.Extension):
    """Docstrings as Markdown with links between public names, and the options behind ``**keywords``."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Convert every docstring of a loaded package."""
        anchors = find_anchors(pkg)
        for owner in list(walk(pkg)):
            if owner.docstring is not None:
                text = name_shared_options(owner, owner.docstring.value)
                owner.docstring.value = convert(text, lambda name, owner=owner: find_anchor(owner, name, anchors))


def walk(owner: griffe.Object) -> Iterator[griffe.Object]:
    """Yield an object and everything that is defined in it, without imported names."""
    yield owner
    for member in owner.members.values():
        if not isinstance(member, griffe.Alias):
            yield from walk(member)


def find_anchors(package: griffe.Module) -> dict[str, str]:
    """Map the full name of each public object, and of what it has, to the name in its room."""
    anchors = {}
    for room in package.modules.values():
        for name in room.exports or ():
            target = room.members.get(str(name))
            if target is None:
                continue
            home = target.target_path if isinstance(target, griffe.Alias) else target.path
            anchors[home] = f"{room.path}.{name}"
    return anchors


def find_anchor(owner: griffe.Object, name: str, anchors: dict[str, str]) -> str | None:
    """Find the entry of a name that a docstring of ``owner`` mentions."""
    try:
        path = name if name.startswith("uumamba.") else owner.resolve(name)
    except griffe.NameResolutionError:
        return None
    return anchors.get(path) or (path if path in anchors.values() else None)


def name_shared_options(owner: griffe.Object, text: str) -> str:
    """Append the names of the options to the line of ``**keywords: Unpack[...]``."""
    for parameter in getattr(owner, "parameters", ()):
        if parameter.kind is griffe.ParameterKind.var_keyword and str(parameter.annotation).startswith("Unpack["):
            shared = owner.modules_collection[parameter.annotation.slice.canonical_path]
            listed = ", ".join(f"``{name}``" for name in list_fields(shared))
            line = re.compile(rf"^(    {parameter.name}: .*?)[.]?$", re.MULTILINE)
            text = line.sub(rf"\1 ({listed}).", text, count=1)
    return text


def list_fields(shared: griffe.Object) -> Iterator[str]:
    """Yield the keys of a ``TypedDict``, those of its bases first."""
    for base in getattr(shared, "resolved_bases", ()):
        yield from list_fields(base)
    yield from (name for name, member in shared.members.items() if member.is_attribute)
