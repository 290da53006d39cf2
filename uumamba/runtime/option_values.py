"""Values of options of the command line."""

import math
from collections.abc import Collection, Sequence

from uumamba.runtime.errors import UsageError, require


def repeat_option(arguments: Sequence[str], option: str, *, valued: Collection[str]) -> list[str]:
    """Write an option before each of its values.

    ``-i a b`` becomes ``-i a -i b``. The values end with the next argument that begins with ``-``. If there is no
    positional argument elsewhere, the last of the last values is it, so that a command's only argument may also come
    after the option.

    Args:
        arguments: arguments of a command with one positional argument.
        option: option with one value or several.
        valued: the other options with one value.

    Example:
        >>> repeat_option(["acdc", "--input", "a", "b", "--out", "o"], "--input", valued=["--out"])
        ['acdc', '--input', 'a', '--input', 'b', '--out', 'o']
        >>> repeat_option(["--input", "a", "acdc", "--out", "o"], "--input", valued=["--out"])
        ['--input', 'a', 'acdc', '--out', 'o']
    """
    groups = _group(arguments, option, valued)
    has_positional = any(not group[0].startswith("-") or group[0] == "--" for group in groups)
    several = [group for group in groups if group[0] == option and len(group) > 2]
    positional = [several[-1].pop()] if several and not has_positional else []
    spread: list[str] = []
    for group in groups:
        if group[0] != option or len(group) < 2:
            spread += group
            continue
        spread += [part for value in group[1:] for part in (option, value)]
        if positional and group is several[-1]:
            spread += positional
    return spread


def _group(arguments: Sequence[str], option: str, valued: Collection[str]) -> list[list[str]]:
    """Split arguments into options with their values, and single arguments."""
    groups: list[list[str]] = []
    waiting = list(arguments)
    while waiting:
        group = [waiting.pop(0)]
        if group[0] == "--":
            group, waiting = [*group, *waiting], []
        elif group[0] == option or group[0] in valued:
            group += [waiting.pop(0)] if waiting else []
            while group[0] == option and waiting and not waiting[0].startswith("-"):
                group.append(waiting.pop(0))
        groups.append(group)
    return groups


def parse_seeds(given: str | None) -> list[int] | None:
    """Parse ``--seeds``.

    Example:
        >>> parse_seeds("0,1, 2")
        [0, 1, 2]
    """
    try:
        return None if given is None else [int(seed) for seed in given.split(",")]
    except ValueError:
        raise UsageError("--seeds", got=given, expected="integers separated by commas, such as 0,1,2") from None


def parse_spacing(given: str | None) -> tuple[float, ...] | None:
    """Parse ``--assume-spacing``; the result is in the order of stored axes.

    Example:
        >>> parse_spacing("8, 1.5, 1.25")
        (1.25, 1.5, 8.0)
    """
    if given is None:
        return None
    words = given.split(",")
    try:
        spacing = [float(word) for word in words]
    except ValueError:
        spacing = []
    expected = "three positive numbers of mm, of slices, rows and columns, such as 8,1.5,1.5"
    require(
        len(spacing) == 3 and all(0 < mm < math.inf for mm in spacing), "--assume-spacing", got=given, expected=expected
    )
    return tuple(reversed(spacing))
