"""Widths of layers by patterns of their names, and how messages name layers and patterns."""

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from uumamba.runtime.errors import UsageError


def width_of(name: str, default: int | None, overrides: Mapping[str, int | None]) -> int | None:
    """That of the first pattern the name matches; ``default`` where it matches none."""
    return next((width for pattern, width in overrides.items() if fnmatchcase(name, pattern)), default)


def bits_of(
    names: Sequence[str], bits: int | None, ends: int | None, overrides: Mapping[str, int | None]
) -> list[int | None]:
    """The width of each layer: that of the first pattern it matches, else ``ends`` for first and last, else ``bits``.

    Example:
        >>> bits_of(["stem", "body.0", "body.1", "head"], 3, 8, {"body.*": 4, "head": None})
        [8, 4, 4, None]
    """
    defaults = [ends if ends is not None and index in (0, len(names) - 1) else bits for index in range(len(names))]
    return [width_of(name, default, overrides) for name, default in zip(names, defaults, strict=True)]


def refuse_idle(overrides: Mapping[str, int | None], names: Sequence[str], others: Sequence[str]) -> None:
    """Refuse a pattern that changes nothing.

    Args:
        overrides: widths by pattern.
        names: of the layers that can be quantised.
        others: names that may be left in full precision, and be given no bits.

    Raises:
        UsageError: a pattern matches no layer; the message has the nearest names first.
    """
    for pattern, width in overrides.items():
        if any(fnmatchcase(name, pattern) for name in (names if width is not None else [*names, *others])):
            continue
        near = difflib.get_close_matches(pattern, names, n=5)
        ordered = [*near, *(name for name in names if name not in near)]
        raise UsageError(
            f"overrides names {pattern!r}, which is no layer to quantise; there are "
            f"{listed([name or repr(name) + ' (the network itself)' for name in ordered])}."
        )


def called(name: str) -> str:
    """What a message calls a layer: its name; a layer that is the whole network has none."""
    return name or "the network"


def listed(names: Sequence[str], *, most: int = 5) -> str:
    """The first few names, and how many others there are.

    Example:
        >>> listed(["a", "b"]), listed(list("abcdefg"))
        ('a, b', 'a, b, c, d, e and 2 others')
    """
    others = len(names) - most
    return ", ".join(names[:most]) + (f" and {others} other{'s' * (others > 1)}" if others > 0 else "")


def leave_out(chosen: Sequence[str], names: Sequence[str], *, most: int = 8) -> str:
    """The ``overrides`` that leave some layers in full precision and no other of ``names``, as a user would write it.

    Example:
        >>> leave_out(["a.out", "b.out", "head"], ["a.in", "a.out", "b.in", "b.out", "head"])
        "overrides={'*.out': None, 'head': None}"
    """
    patterns, left = [], list(chosen)
    while left:
        patterns.append(_widest(left[0], chosen, names))
        left = [name for name in left[1:] if not fnmatchcase(name, patterns[-1])]
    items = [f"{pattern!r}: None" for pattern in patterns[:most]] + ["..."] * (len(patterns) > most)
    return f"overrides={{{', '.join(items)}}}"


def _widest(name: str, chosen: Sequence[str], names: Sequence[str]) -> str:
    """The pattern that matches a name and as many of the chosen as possible, and no other."""
    parent, _, last = name.rpartition(".")
    matched = {
        pattern: [each for each in names if fnmatchcase(each, pattern)]
        for pattern in ([name, f"*.{last}", f"{parent}.*"] if parent else [name])
    }
    exact = {pattern: found for pattern, found in matched.items() if set(found) <= set(chosen)}
    return max(exact, key=lambda pattern: len(exact[pattern]), default=name)
