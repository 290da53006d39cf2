"""The file of slow examples: which, found how, and in which data set, so that it is never used with another."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from uumamba.domain_generalization.slow_examples import GroupSplit, SlowExamples
from uumamba.runtime.errors import UsageError
from uumamba.runtime.files import write_json

FORMAT = "uumamba slow examples, 1"


def write_slow_examples(path: Path | str, found: SlowExamples) -> None:
    """Write JSON that is whole or absent, for an audit and for :func:`read_slow_examples`.

    Raises:
        UsageError: nothing can be written there.
    """
    write_json(path, {"format": FORMAT} | asdict(found))


def read_slow_examples(path: Path | str, *, size: int, fingerprint: str) -> SlowExamples:
    """Read the file back, if it is of the data set at hand.

    Args:
        path: the file.
        size: of the data set at hand.
        fingerprint: of the data set at hand; see :func:`uumamba.domain_generalization.fingerprint_of`.

    Raises:
        UsageError: there is no such file, it is damaged or of another kind, or it is of another data set.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "slow.json"
        >>> write_slow_examples(path, SlowExamples((1, 3), 4, (GroupSplit(0, 4, 2, 0.9, 0.1),), 0, "abc"))
        >>> read_slow_examples(path, size=4, fingerprint="abc").slow
        (1, 3)
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; find the slow examples first, or correct the path.") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as JSON ({error}); find the slow examples anew.") from None
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise UsageError(f"{path} is not a file of slow examples in the format {FORMAT!r}; find them anew.")
    found = _slow_examples(path, content)
    if found.size != size:
        raise UsageError(
            f"{path} is of a data set of {found.size} examples, and here are {size}; find the slow ones of this one."
        )
    if found.fingerprint != fingerprint:
        raise UsageError(
            f"{path} is of another data set: its fingerprint begins with {found.fingerprint[:12]!r}, here it is "
            f"{fingerprint[:12]!r}. Images, labels or their order changed; find the slow examples anew."
        )
    return found


def _slow_examples(path: Path, content: dict[str, Any]) -> SlowExamples:
    try:
        groups = tuple(GroupSplit(**each) for each in content.pop("groups"))
        slow, errors = tuple(content.pop("slow")), tuple(content.pop("errors"))
        found = SlowExamples(slow=slow, groups=groups, errors=errors, **content)
    except (TypeError, KeyError) as error:
        raise UsageError(
            f"{path} lacks or has a key that it should not ({error}); find the slow examples anew."
        ) from None
    places = all(isinstance(place, int) for place in slow) and isinstance(found.size, int)
    if not places or list(slow) != sorted({*slow}) or (slow and not 0 <= slow[0] <= slow[-1] < found.size):
        raise UsageError(
            f"{path} was changed: its slow examples are not ascending places below {found.size}; find them anew."
        )
    _check_kinds(path, found)
    if len(slow) != sum(each.slow for each in groups):
        counted = sum(each.slow for each in groups)
        raise UsageError(
            f"{path} was changed: it lists {len(slow)} slow examples and its groups count {counted}; find them anew."
        )
    return found


def _check_kinds(path: Path, found: SlowExamples) -> None:
    """What is reckoned with is of its kind."""
    for group in found.groups:
        if not isinstance(group.slow, int):
            raise UsageError(
                f"{path} was changed: group {group.group} counts {group.slow} slow examples; find them anew."
            )
    if not isinstance(found.fingerprint, str):
        raise UsageError(f"{path} was changed: its fingerprint is {found.fingerprint} and no text; find them anew.")
    if not isinstance(found.settings, dict):
        raise UsageError(f"{path} was changed: its settings are {found.settings} and no mapping; find them anew.")
