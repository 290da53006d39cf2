"""Extension of griffe that prepares the docstrings and signatures of uumamba for the site."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import griffe

from docs.hooks.option_types import describe_range, expand, extend_argument
from docs.hooks.rest_to_markdown import convert


class RestDocstrings(griffe.Extension):
    """Docstrings as Markdown, with links between public names and with the ranges of options."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Convert every docstring and signature of a loaded package."""
        anchors = find_anchors(pkg)
        owners = list(walk(pkg))
        for owner in owners:
            if owner.docstring is not None:
                text = describe_options(owner, owner.docstring.value)
                owner.docstring.value = convert(text, partial(find_anchor, owner, anchors=anchors))
        for owner in owners:
            expand_types(owner, anchors)


def walk(owner: griffe.Object) -> Iterator[griffe.Object]:
    """Yield an object and everything that is defined in it, without imported names."""
    yield owner
    for member in owner.members.values():
        if not isinstance(member, griffe.Alias):
            yield from walk(member)


def find_anchors(package: griffe.Module) -> dict[str, str]:
    """Map the full name of each public object to its anchor on the site.

    The anchor is the name in the room. For a function in a file of its own name, it is the full name.
    """
    anchors = {}
    for room in package.modules.values():
        for name in map(str, room.exports or ()):
            member = room.members[name]
            own_file = isinstance(member, griffe.Module)
            home = member.target_path if isinstance(member, griffe.Alias) else f"{member.path}.{name}"
            anchors[home] = home if own_file else f"{room.path}.{name}"
    return anchors


def find_anchor(owner: griffe.Object, name: str, anchors: dict[str, str]) -> str | None:
    """Find the entry of a name that a docstring of ``owner`` mentions."""
    path = name
    if not name.startswith("uumamba."):
        try:
            path = owner.resolve(name)
        except griffe.NameResolutionError:
            return None
    anchor = anchors.get(path, path)
    return anchor if anchor in anchors.values() else None


def describe_options(owner: griffe.Object, text: str) -> str:
    """Append the range of each option to its line, and to ``**keywords`` the names of the shared options."""
    for option in list_options(owner):
        words = describe_range(option.annotation)
        if words:
            text = extend_argument(text, option.name, f"{words[0].upper()}{words[1:]}.")
        typed = option.annotation
        if isinstance(typed, griffe.ExprSubscript) and typed.canonical_path == "typing.Unpack":
            shared = owner.modules_collection[str(getattr(typed.slice, "canonical_path", ""))]
            listed = ", ".join(f"``{name}``" for name in list_fields(shared))
            text = extend_argument(text, option.name, f"These are {listed}.")
    return text


def list_options(owner: griffe.Object) -> Iterator[griffe.Parameter | griffe.Attribute]:
    """Yield the parameters of a function or class, and the fields of a data class or ``TypedDict``."""
    yield from getattr(owner, "parameters", ())
    if owner.is_class:
        yield from (member for member in owner.members.values() if isinstance(member, griffe.Attribute))


def list_fields(shared: griffe.Object) -> Iterator[str]:
    """Yield the keys of a ``TypedDict``, those of its bases first."""
    for base in getattr(shared, "resolved_bases", ()):
        yield from list_fields(base)
    yield from (name for name, member in shared.members.items() if member.is_attribute)


def expand_types(owner: griffe.Object, anchors: dict[str, str]) -> None:
    """Write out the aliases in the signature of a function, or in the type of an attribute."""
    if isinstance(owner, griffe.Function):
        owner.returns = expand(owner.returns, anchors)
        for parameter in owner.parameters:
            parameter.annotation = expand(parameter.annotation, anchors)
            if parameter.kind in (griffe.ParameterKind.var_keyword, griffe.ParameterKind.var_positional):
                parameter.default = None
    elif isinstance(owner, griffe.Attribute):
        owner.annotation = expand(owner.annotation, anchors)
