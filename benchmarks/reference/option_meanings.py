"""Meanings of options, from the docstrings of constructors."""

import inspect
import re
from collections.abc import Iterator
from pkgutil import resolve_name
from typing import Any, get_args, get_type_hints

from uumamba.config.bind import list_options, list_signatures, load_constructor
from uumamba.config.registry import KINDS


def read_meanings(kind: str, name: str) -> dict[str, str]:
    """Read the ``Args:`` line of every option of a part.

    Options of ``**keywords`` are described where their ``TypedDict`` is.

    Example:
        >>> read_meanings("optim", "SAM")["rho"]
        'radius of the neighbourhood.'
    """
    section = KINDS[kind].section
    sources = [load_constructor(kind, name), *([] if section is None else [resolve_name(section)])]
    found: dict[str, str] = {}
    for documented in (each for source in sources for each in _list_documented(source)):
        for key, meaning in _read_lines(documented).items():
            found.setdefault(key, meaning)
    return {key: found[key] for key in list_options(kind, name) if key in found}


def read_section_meanings(model: type) -> dict[str, str]:
    """Read the ``Args:`` lines of a section with a model, by key."""
    return _read_lines(model)


def _list_documented(constructor: Any) -> Iterator[Any]:
    """Yield everything whose docstring describes options of a constructor."""
    for made in list_signatures(constructor):
        yield from (get_args(hint)[0] for name, hint in get_type_hints(made).items() if _is_family(made, name))
    yield from constructor.__mro__ if isinstance(constructor, type) else (constructor,)


def _is_family(made: Any, name: str) -> bool:
    found = inspect.signature(made).parameters.get(name)
    return found is not None and found.kind is found.VAR_KEYWORD


def _read_lines(documented: Any) -> dict[str, str]:
    text = inspect.getdoc(documented) or ""
    block = re.search(r"^(?:Args|Attributes):\n((?:    .*\n|\n)*)", f"{text}\n", re.MULTILINE)
    lines = re.findall(r"^    (\w+): ((?:.|\n(?=        ))*)", block[1] if block else "", re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in lines}
