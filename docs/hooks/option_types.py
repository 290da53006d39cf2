"""Types of arguments as readers need them: aliases written out, ranges in words."""

import re
from dataclasses import fields, replace
from typing import Any

import griffe

_PACKAGE = "uumamba."


def expand(annotation: str | griffe.Expr | None, public: dict[str, str]) -> str | griffe.Expr | None:
    """Replace private aliases in an annotation by what they stand for.

    ``Annotated[float, ...]`` becomes ``float``; names with an entry on the site stay.
    """
    if isinstance(annotation, griffe.ExprName):
        value = _find_alias(annotation, public)
        return annotation if value is None else expand(value, public)
    if isinstance(annotation, griffe.ExprSubscript) and annotation.canonical_path == "typing.Annotated":
        return expand(_inner(annotation)[0], public)
    if not isinstance(annotation, griffe.Expr) or _is_literal(annotation):
        return annotation
    changed: dict[str, Any] = {}
    for each in fields(annotation):
        value = getattr(annotation, each.name)
        if isinstance(value, griffe.Expr):
            changed[each.name] = expand(value, public)
        elif isinstance(value, list):
            changed[each.name] = [expand(item, public) for item in value]
    return replace(annotation, **changed)


def describe_range(annotation: str | griffe.Expr | None) -> str:
    """Describe the range of an option, empty for a type without one.

    The words are those of the ``Limit`` in ``Annotated[float, Limit(...)]``, also with ``| None``.
    """
    if isinstance(annotation, griffe.ExprBinOp) and str(annotation.right) == "None":
        return describe_range(annotation.left)
    if isinstance(annotation, griffe.ExprName):
        value = _find_alias(annotation, {})
        return "" if value is None else describe_range(value)
    if isinstance(annotation, griffe.ExprSubscript) and annotation.canonical_path == "typing.Annotated":
        first, *limits = _inner(annotation)
        return " and ".join(filter(None, [describe_range(first), *map(_describe_limit, limits)]))
    return ""


def extend_argument(text: str, name: str, words: str) -> str:
    """Append a sentence to the description of an argument in a docstring.

    A description that has the words, or a range of its own, stays as it is.

    Example:
        >>> extend_argument("    rho: radius.", "rho", "At least 0.")
        '    rho: radius. At least 0.'
    """
    entry = re.compile(rf"^    \**{name}: .*(?:\n {{8}}.*|\n(?=\n {{8}}))*", re.MULTILINE)
    return entry.sub(lambda found: found[0] if _has_range(found[0]) else f"{found[0]} {words}", text, count=1)


def _has_range(description: str) -> bool:
    return (
        re.search(r"at (least|most)|(above|below|between|from) \d|\d or \d|``features``", description, re.IGNORECASE)
        is not None
    )


def _describe_limit(limit: str | griffe.Expr) -> str:
    """Read the words of a limit, ``at least 0`` of ``Limit("of at least 0", ...)``."""
    call = _find_alias(limit, {}, calls=True) if isinstance(limit, griffe.ExprName) else limit
    words = str(call.arguments[0]).strip("'\"") if isinstance(call, griffe.ExprCall) else ""
    return words.removeprefix("of ")


def _find_alias(name: griffe.ExprName, public: dict[str, str], *, calls: bool = False) -> griffe.Expr | None:
    path, scope = name.canonical_path, name.parent
    if not path.startswith(_PACKAGE) or path in public or not isinstance(scope, griffe.Object):
        return None
    found = _find_object(scope, path)
    value = found.value if isinstance(found, griffe.Attribute) else None
    return value if isinstance(value, griffe.Expr) and isinstance(value, griffe.ExprCall) == calls else None


def _find_object(scope: griffe.Object, path: str) -> griffe.Object | None:
    try:
        found = scope.modules_collection[path]
        return found.final_target if isinstance(found, griffe.Alias) else found
    except (KeyError, griffe.AliasResolutionError):
        return None


def _inner(annotation: griffe.ExprSubscript) -> list[str | griffe.Expr]:
    return list(annotation.slice.elements) if isinstance(annotation.slice, griffe.ExprTuple) else [annotation.slice]


def _is_literal(annotation: griffe.Expr) -> bool:
    return isinstance(annotation, griffe.ExprSubscript) and annotation.canonical_path == "typing.Literal"
