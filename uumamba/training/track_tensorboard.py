"""TensorBoard tracker, always equal to ``metrics.jsonl``."""

import time
from pathlib import Path
from typing import Any, ClassVar

from uumamba.runtime.observer import Observer, Row, RunView
from uumamba.training.run_folder import end_times, finite_scalars


class TensorBoardTracker(Observer):
    """Observer that records scalars for ``tensorboard --logdir RUN``.

    An event file can only grow, so it cannot be corrected after a kill. A resumed run therefore replaces the file by
    the rows of the checkpoint, and an open TensorBoard drops the old points.

    Args:
        folder: folder of event files only; created when training begins.
    """

    packages: ClassVar[tuple[str, ...]] = ("tensorboard",)
    """Packages that the tracker imports."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._writer: Any = None

    def on_start(self, run: RunView) -> None:
        """Replace earlier event files by the rows of the run."""
        from torch.utils.tensorboard.writer import SummaryWriter

        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(str(self.folder), purge_step=0)
        for row, moment in zip(run.rows, end_times(run.rows, time.time()), strict=True):
            self._add(row, moment)

    def on_epoch_saved(self, run: RunView, row: Row) -> None:
        self._add(row, time.time())

    def on_end(self, run: RunView, error: BaseException | None) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add(self, row: Row, moment: float) -> None:
        for name, value in finite_scalars(row).items():
            self._writer.add_scalar(name, value, global_step=row["epoch"] + 1, walltime=moment)
        self._writer.flush()
