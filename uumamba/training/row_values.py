"""Numbers and times of an epoch's row, for trackers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from uumamba.runtime.tree import join_keys


def finite_scalars(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a row, without its epoch.

    Numbers of nested rows are named ``outer/inner``.

    Example:
        >>> finite_scalars({"epoch": 3, "loss": 0.5, "dice": None, "loss_weights": {"region": 1.0}})
        {'loss': 0.5, 'loss_weights/region': 1.0}
    """
    values = join_keys({key: value for key, value in row.items() if key != "epoch"}, separator="/")
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def end_times(rows: Sequence[Mapping[str, Any]], now: float) -> list[float]:
    """Return the end of each epoch, for a record written later.

    The times are counted back from ``now`` by the epochs' seconds.

    Example:
        >>> end_times([{"seconds": 4.0}, {"seconds": 3.0}], now=100.0)
        [97.0, 100.0]
    """
    times = [now]
    for row in reversed(rows[1:]):
        times.append(times[-1] - float(row.get("seconds") or 0.0))
    return times[::-1] if rows else []
