"""TensorBoard event file, always equal to ``metrics.jsonl``."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uumamba.training.callback_list import Row, end_times, finite_scalars


class TensorBoardTracker:
    """Scalars of every epoch for ``tensorboard --logdir RUN``.

    An event file can only grow, so one that a kill left behind or ahead of the checkpoint cannot be corrected: a
    resumed run rewrites it from the rows that count, and tells an open TensorBoard to forget the old one.

    Args:
        folder: for event files only; made when training begins.
    """

    def __init__(self, folder: Path | str) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        self.folder = Path(folder)
        self._make_writer = SummaryWriter
        self._writer: Any = None

    def begin(self, rows: Sequence[Row], *, done: int, epochs: int) -> None:
        """Replace earlier event files by the rows so far."""
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = self._make_writer(str(self.folder), purge_step=0)
        for row, moment in zip(rows, end_times(rows, time.time()), strict=True):
            self._add(row, moment)

    def epoch(self, row: Row) -> None:
        """Add a row."""
        self._add(row, time.time())

    def end(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

    def _add(self, row: Row, moment: float) -> None:
        for name, value in finite_scalars(row).items():
            self._writer.add_scalar(name, value, global_step=row["epoch"] + 1, walltime=moment)
        self._writer.flush()
