"""Trackers: TensorBoard and MLflow, in addition to the run's own files."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from uumamba.runtime.errors import require

if TYPE_CHECKING:
    from uumamba.runtime.observer import Observer

Tracker = Literal["tensorboard", "mlflow"]
PACKAGES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
"""Packages that each tracker imports; mlflow-skinny lacks MLflow's last two."""


def build_trackers(
    names: Sequence[Tracker], *, run: Path, fold: str, experiment: str, parameters: Mapping[str, Any]
) -> "list[Observer]":
    """Build the trackers of a fold, each once.

    Args:
        names: trackers of the configuration.
        run: the run's folder, in which trackers write; its folds share one MLflow database.
        fold: the fold's path in the run's folder.
        experiment: name of the MLflow experiment; each fold is an MLflow run.
        parameters: logged by MLflow.

    Raises:
        UsageError: a package is not installed.
    """
    from uumamba.training.track_mlflow import MLflowTracker
    from uumamba.training.track_tensorboard import TensorBoardTracker

    made: dict[str, Callable[[], Observer]] = {
        "tensorboard": lambda: TensorBoardTracker(run / fold / "tensorboard"),
        "mlflow": lambda: MLflowTracker(run / "mlflow.db", experiment=experiment, run=fold, parameters=parameters),
    }
    return [made[name]() for name in dict.fromkeys(names)]


def check_trackers(names: Sequence[Tracker]) -> None:
    """Raise if a tracker's packages are not installed, without importing them.

    Raises:
        UsageError: a package is not installed.
    """
    for name in names:
        missing = [package for package in PACKAGES[name] if find_spec(package) is None]
        require(
            not missing,
            "track",
            got=name,
            expected=f"installed packages, missing: {', '.join(missing)}",
            fix=f"pip install 'uumamba[track]', or leave {name} out",
        )
