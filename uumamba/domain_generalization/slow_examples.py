"""List of slow examples: how each class was split, and its file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.files import write_json

FORMAT = "uumamba slow examples, 1"


@dataclass(frozen=True)
class GroupSplit:
    """Split of one class (or another group).

    Attributes:
        group: its number.
        size: number of its examples.
        slow: number of its slow examples.
        slow_loss: their mean loss; None where none is slow.
        fast_loss: the mean loss of the others; None where there are none.
        note: the reason why none is slow, or empty.
    """

    group: int
    size: int
    slow: int = 0
    slow_loss: float | None = None
    fast_loss: float | None = None
    note: str = ""


@dataclass(frozen=True)
class SlowExamples:
    """Examples to show more than once, with everything that an audit needs.

    Attributes:
        slow: their places in the data set, ascending.
        size: of the data set.
        groups: the split of each class.
        seed: of the clustering and of the probe's training.
        fingerprint: of the data set; see :func:`fingerprint_batches`.
        epoch: epochs that the network had been trained, where a probe chose them.
        errors: the probe's training error before the first epoch and after each.
        settings: other options, as plain values.
    """

    slow: tuple[int, ...]
    size: int
    groups: tuple[GroupSplit, ...]
    seed: int
    fingerprint: str
    epoch: int | None = None
    errors: tuple[float, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)


def write_slow_examples(path: Path | str, found: SlowExamples) -> None:
    """Write a JSON file, whole or absent, for an audit and for :func:`read_slow_examples`.

    Raises:
        UsageError: nothing can be written there.
    """
    write_json(path, {"format": FORMAT} | asdict(found))


def read_slow_examples(path: Path | str, *, size: int, fingerprint: str) -> SlowExamples:
    """Read the file if it belongs to the current data set.

    Args:
        path: the file.
        size: of the current data set.
        fingerprint: of the current data set; see :func:`uumamba.domain_generalization.fingerprint_batches`.

    Raises:
        UsageError: there is no such file, it is damaged or of another kind, or it belongs to another data set.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "slow.json"
        >>> write_slow_examples(path, SlowExamples((1, 3), 4, (GroupSplit(0, 4, 2, 0.9, 0.1),), 0, "abc"))
        >>> read_slow_examples(path, size=4, fingerprint="abc").slow
        (1, 3)
    """
    expected, fix = f"a file of the format {FORMAT!r}", "find the slow examples again"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        require(content.pop("format") == FORMAT, str(path), got="another format", expected=expected, fix=fix)
        groups = tuple(GroupSplit(**each) for each in content.pop("groups"))
        slow, errors = tuple(content.pop("slow")), tuple(content.pop("errors"))
        found = SlowExamples(slow=slow, groups=groups, errors=errors, **content)
    except FileNotFoundError:
        raise UsageError(str(path), got="no file", expected=expected, fix="correct the path") from None
    except (OSError, TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
        raise UsageError(str(path), got=f"{type(error).__name__} ({error})", expected=expected, fix=fix) from None
    is_sound = list(slow) == sorted({*slow}) and all(0 <= place < found.size for place in slow)
    require(is_sound, str(path), got=list(slow), expected=f"ascending places below {found.size}", fix=fix)
    is_same = (found.size, found.fingerprint) == (size, fingerprint)
    got, here = (
        f"{n} examples, fingerprint {text[:12]}" for n, text in ((found.size, found.fingerprint), (size, fingerprint))
    )
    require(is_same, str(path), got=got, expected=f"those of this data set, {here}", fix=fix)
    return found
