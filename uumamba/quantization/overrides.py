"""Bit widths of layers by name patterns, and names of layers and patterns in messages."""

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from uumamba.runtime.errors import require


def find_width(name: str, default: int | None, overrides: Mapping[str, int | None]) -> int | None:
    """Return the width of the first pattern that matches a name, ``default`` if none does."""
    return next((width for pattern, width in overrides.items() if fnmatchcase(name, pattern)), default)


def assign_bits(
    names: Sequence[str], bits: int | None, ends: int | None, overrides: Mapping[str, int | None]
) -> list[int | None]:
    """Return the width of each layer: of its first matching pattern, else ``ends`` for first and last, else ``bits``.

    Example:
        >>> assign_bits(["stem", "body.0", "body.1", "head"], 3, 8, {"body.*": 4, "head": None})
        [8, 4, 4, None]
    """
    defaults = [ends if ends is not None and index in (0, len(names) - 1) else bits for index in range(len(names))]
    return [find_width(name, default, overrides) for name, default in zip(names, defaults, strict=True)]


def check_overrides(overrides: Mapping[str, int | None], names: Sequence[str], others: Sequence[str]) -> None:
    """Raise if a pattern has no effect.

    Args:
        overrides: widths by pattern.
        names: layers that can be quantized.
        others: modules that cannot; patterns with width None may match them.

    Raises:
        UsageError: a pattern matches no layer; the message lists the closest names first.
    """
    for pattern, width in overrides.items():
        near = difflib.get_close_matches(pattern, names, n=5)
        require(
            any(fnmatchcase(name, pattern) for name in (names if width is not None else [*names, *others])),
            "overrides",
            got=pattern,
            expected=f"layers to quantize: {join_names([*near, *(name for name in names if name not in near)])}",
        )


def parameter_name(layer: str, part: str) -> str:
    """Return the name of a layer's ``weight`` or ``input``; a layer that is the whole network has no name.

    Example:
        >>> parameter_name("head", "input"), parameter_name("", "weight")
        ('head.input', 'weight')
    """
    return f"{layer}.{part}".removeprefix(".")


def join_names(names: Sequence[str], *, most: int = 5) -> str:
    """Join the first few names and the number of others; a network that is one layer has the empty name ``''``.

    Example:
        >>> join_names(["a", "b"]), join_names(list("abcdefg"))
        ('a, b', 'a, b, c, d, e and 2 others')
    """
    others = len(names) - most
    shown = ", ".join(name or "''" for name in names[:most])
    return shown + (f" and {others} other{'s' * (others > 1)}" if others > 0 else "")


def suggest_overrides(chosen: Sequence[str], names: Sequence[str], *, most: int = 8) -> str:
    """Return the ``overrides`` that keep the chosen layers in full precision and no others of ``names``.

    Example:
        >>> suggest_overrides(["a.out", "b.out", "head"], ["a.in", "a.out", "b.in", "b.out", "head"])
        "overrides={'*.out': None, 'head': None}"
    """
    patterns, left = [], list(chosen)
    while left:
        patterns.append(_find_widest_pattern(left[0], chosen, names))
        left = [name for name in left[1:] if not fnmatchcase(name, patterns[-1])]
    items = [f"{pattern!r}: None" for pattern in patterns[:most]] + ["..."] * (len(patterns) > most)
    return f"overrides={{{', '.join(items)}}}"


def _find_widest_pattern(name: str, chosen: Sequence[str], names: Sequence[str]) -> str:
    """Return the pattern that matches a name, as many other chosen names as possible, and no name beside them."""
    parent, _, last = name.rpartition(".")
    matched = {
        pattern: [each for each in names if fnmatchcase(each, pattern)]
        for pattern in ([name, f"*.{last}", f"{parent}.*"] if parent else [name])
    }
    exact = {pattern: found for pattern, found in matched.items() if set(found) <= set(chosen)}
    return max(exact, key=lambda pattern: len(exact[pattern]), default=name)
