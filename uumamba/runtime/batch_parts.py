"""Input and label of a batch in common layouts."""

from collections.abc import Mapping
from typing import Any

from uumamba.runtime.errors import UsageError


def read_pair(batch: Any, *, fix: str = "") -> tuple[Any, Any]:
    """Return input and label of a batch.

    Args:
        batch: a mapping with ``image`` and ``label``, or a pair ``(input, label)``.
        fix: what to do about another layout, for the error.

    Raises:
        UsageError: the batch has another layout.

    Example:
        >>> read_pair([1.0, 0]), read_pair({"image": 1.0, "label": 0})
        ((1.0, 0), (1.0, 0))
    """
    if isinstance(batch, Mapping) and {"image", "label"} <= batch.keys():
        return batch["image"], batch["label"]
    if isinstance(batch, list | tuple) and len(batch) == 2:
        return batch[0], batch[1]
    raise UsageError(
        "batch",
        got=describe_batch(batch),
        expected='a mapping with "image" and "label", or a pair (input, label)',
        fix=fix,
    )


def describe_batch(batch: Any) -> object:
    """Describe a batch by its layout, for errors.

    Example:
        >>> describe_batch({"x": 1}), describe_batch((1, 2, 3))
        ('the keys x', 'a tuple of 3')
    """
    if isinstance(batch, Mapping):
        return f"the keys {', '.join(map(str, batch))}" if batch else "no keys"
    return f"a {type(batch).__name__} of {len(batch)}" if isinstance(batch, list | tuple) else batch
