"""Trackers: TensorBoard and MLflow, in addition to the run's own files."""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from uumamba.config.bind import bind, check_name, load_constructor, supply
from uumamba.runtime.errors import require
from uumamba.runtime.observer import Observer

Tracker = Annotated[str, AfterValidator(partial(check_name, "tracker"))]


def build_trackers(
    names: Sequence[Tracker], *, run: Path, fold: str, experiment: str, parameters: Mapping[str, Any]
) -> list[Observer]:
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
    return [
        supply(
            bind("tracker", name, {}),
            folder=run / fold / name,
            database=run / f"{name}.db",
            experiment=experiment,
            run=fold,
            parameters=parameters,
        )
        for name in dict.fromkeys(names)
    ]


def check_trackers(names: Sequence[Tracker]) -> None:
    """Raise if a tracker's packages are not installed, without importing them.

    Raises:
        UsageError: a package is not installed.
    """
    for name in names:
        missing = [
            each for each in getattr(load_constructor("tracker", name), "packages", ()) if find_spec(each) is None
        ]
        require(
            not missing,
            "track",
            got=name,
            expected=f"installed packages, missing: {', '.join(missing)}",
            fix=f"pip install 'uumamba[track]', or leave {name} out",
        )
