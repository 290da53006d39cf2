"""Trackers: TensorBoard and MLflow, in addition to the run's own files."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

from uumamba.config.bind import load_constructor, read_part, supply
from uumamba.config.registry import KINDS
from uumamba.runtime.errors import require

if TYPE_CHECKING:
    from uumamba.runtime.observer import Observer


def _check_name(name: str) -> str:
    known = list(KINDS["tracker"].parts)
    require(name in known, "", got=name, expected=f"one of {', '.join(known)}")
    return name


Tracker = Annotated[str, AfterValidator(_check_name)]


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
    return [
        supply(
            read_part("tracker", {"name": name}).bind(),
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
        missing = [package for package in _find_packages(name) if find_spec(package) is None]
        require(
            not missing,
            "track",
            got=name,
            expected=f"installed packages, missing: {', '.join(missing)}",
            fix=f"pip install 'uumamba[track]', or leave {name} out",
        )


def _find_packages(name: str) -> tuple[str, ...]:
    return tuple(getattr(load_constructor("tracker", name), "packages", ()))
