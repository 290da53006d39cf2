"""Bit widths by name patterns, and layer names for messages."""

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from uumamba.runtime.errors import require


def find_width(name: str, default: int | None, overrides: Mapping[str, int | None]) -> int | None:
    """Return the width of the first matching pattern, or ``default``."""
    return next((width for pattern, width in overrides.items() if fnmatchcase(name, pattern)), default)


def assign_bits(
    names: Sequence[str], bits: int | None, ends: int | None, overrides: Mapping[str, int | None]
) -> list[int | None]:
    """Return the bit width of each layer.

    The first matching pattern decides. Without a match, the first and the last layer get ``ends``, unless ``ends`` is
    None, and all other layers get ``bits``.

    Example:
        >>> assign_bits(["stem", "body.0", "body.1", "head"], 3, 8, {"body.*": 4, "head": None})
        [8, 4, 4, None]
    """
    defaults = [ends if ends is not None and index in (0, len(names) - 1) else bits for index in range(len(names))]
    return [find_width(name, default, overrides) for name, default in zip(names, defaults, strict=True)]


def check_overrides(overrides: Mapping[str, int | None], names: Sequence[str], others: Sequence[str]) -> None:
    """Raise if a pattern has no effect.

    Args:
        overrides: bit widths by pattern.
        names: names of the quantizable layers.
        others: names of other modules with matrices; only patterns with width None may match these.

    Raises:
        UsageError: a pattern matches no layer; the message lists the most similar names first.
    """
    for pattern, width in overrides.items():
        near = difflib.get_close_matches(pattern, names, n=5)
        require(
            any(fnmatchcase(name, pattern) for name in (names if width is not None else [*names, *others])),
            "overrides",
            got=pattern,
            expected=f"a pattern of layers: {join_names([*near, *(name for name in names if name not in near)])}",
        )


def parameter_name(layer: str, part: str) -> str:
    """Return the full name of a layer's ``weight`` or ``input``.

    A network that is itself a layer has the empty name ``''``.

    Example:
        >>> parameter_name("head", "input"), parameter_name("", "weight")
        ('head.input', 'weight')
    """
    return f"{layer}.{part}".removeprefix(".")


def join_names(names: Sequence[str], *, most: int = 5) -> str:
    """Join the first names and the number of other names.

    Example:
        >>> join_names(["a", "b"]), join_names(list("abcdefg"))
        ('a, b', 'a, b, c, d, e and 2 others')
    """
    others = len(names) - most
    shown = ", ".join(name or "''" for name in names[:most])
    return shown + (f" and {others} other{'s' * (others > 1)}" if others > 0 else "")


def suggest_overrides(chosen: Sequence[str], names: Sequence[str], *, most: int = 8) -> str:
    """Return ``overrides`` that keep only the chosen layers in full precision.

    Example:
        >>> suggest_overrides(["a.out", "b.out", "head"], ["a.in", "a.out", "b.in", "b.out", "head"])
        "overrides={'*.out': None, 'head': None}"
    """
    patterns: list[str] = []
    for name in chosen:
        if not any(fnmatchcase(name, pattern) for pattern in patterns):
            patterns.append(_find_widest_pattern(name, chosen, names))
    items = [f"{pattern!r}: None" for pattern in patterns[:most]] + ["..."] * (len(patterns) > most)
    return f"overrides={{{', '.join(items)}}}"


def _find_widest_pattern(name: str, chosen: Sequence[str], names: Sequence[str]) -> str:
    """Return the pattern with most matches that matches chosen names only."""
    parent, _, last = name.rpartition(".")
    matched = {
        pattern: [each for each in names if fnmatchcase(each, pattern)]
        for pattern in ([name, f"*.{last}", f"{parent}.*"] if parent else [name])
    }
    exact = {pattern: matches for pattern, matches in matched.items() if set(matches) <= set(chosen)}
    return max(exact, key=lambda pattern: len(exact[pattern]), default=name)
