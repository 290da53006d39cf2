"""TensorBoard tracker, always equal to ``metrics.jsonl``."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from uumamba.training.callback_list import Row, end_times, finite_scalars


class TensorBoardTracker:
    """Callback that records scalars for ``tensorboard --logdir RUN``.

    An event file can only grow, so it cannot be corrected after a kill. A resumed run therefore replaces the file by
    the rows of the checkpoint, and an open TensorBoard drops the old points.

    Args:
        folder: folder of event files only; created when training begins.
    """

    packages: ClassVar[tuple[str, ...]] = ("tensorboard",)
    """Packages that the tracker imports."""

    def __init__(self, folder: Path | str) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.folder = Path(folder)
        self._make_writer = SummaryWriter
        self._writer: Any = None

    def begin(self, rows: Sequence[Row], *, done: int, epochs: int) -> None:
        """Replace earlier event files by the given rows."""
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = self._make_writer(str(self.folder), purge_step=0)
        for row, moment in zip(rows, end_times(rows, time.time()), strict=True):
            self._add(row, moment)

    def epoch(self, row: Row) -> None:
        self._add(row, time.time())

    def end(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add(self, row: Row, moment: float) -> None:
        for name, value in finite_scalars(row).items():
            self._writer.add_scalar(name, value, global_step=row["epoch"] + 1, walltime=moment)
        self._writer.flush()
