"""Trackers: where a run can be followed beside its own files."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from uumamba.runtime.errors import UsageError

if TYPE_CHECKING:
    from uumamba.training.callback_list import Callback

Tracker = Literal["tensorboard", "mlflow"]
PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
"""MLflow's small package, mlflow-skinny, lacks the last two."""


def build_trackers(
    names: Sequence[Tracker], *, run: Path, fold: str, experiment: str, parameters: Mapping[str, Any]
) -> "list[Callback]":
    """The trackers of a fold's training, each once; all of them write into the run's folder.

    Args:
        names: of the configuration.
        run: the run's folder, whose folds share what compares them.
        fold: the fold's path in it.
        experiment: what MLflow calls the run; its folds are MLflow's runs.
        parameters: for MLflow.

    Raises:
        UsageError: one's package is not installed.
    """
    from uumamba.training.track_mlflow import MLflowTracker
    from uumamba.training.track_tensorboard import TensorBoardTracker

    made: dict[str, Callable[[], Callback]] = {
        "tensorboard": lambda: TensorBoardTracker(run / fold / "tensorboard"),
        "mlflow": lambda: MLflowTracker(run / "mlflow.db", experiment=experiment, run=fold, parameters=parameters),
    }
    return [made[name]() for name in dict.fromkeys(names)]


def check_trackers(names: Sequence[Tracker]) -> None:
    """Refuse a tracker whose packages are not installed; none of them is loaded.

    Raises:
        UsageError: with what to install.
    """
    for name in names:
        missing = [package for package in PACKAGES[name] if find_spec(package) is None]
        if missing:
            raise UsageError(
                f"track: {name} needs {', '.join(missing)}, which this environment lacks; `pip install "
                f"'uumamba[track]'`, or leave {name} out of track."
            )
