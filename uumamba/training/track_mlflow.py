"""A run of MLflow in a local database, always equal to ``metrics.jsonl``."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uumamba.runtime.errors import UsageError
from uumamba.training.following import Row, finished_at, scalars

MOST_AT_ONCE = 100
"""Parameters that MLflow takes in one call; of metrics it takes ten times as many."""
LONGEST_VALUE = 500
"""Letters of a parameter that every version of MLflow takes."""


class MLflowTracker:
    """Scalars of every epoch for ``mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db``.

    Folds and seeds share the database, so that they stand side by side, each as a run of one name. MLflow adds no
    user's or machine's name here, and its telemetry is switched off for this process before it is imported.

    Making the database takes MLflow some seconds, once.

    Args:
        database: the file; made when training begins.
        experiment: what the run belongs to, such as the configuration's name.
        run: the run's own name in it, such as ``"fold_0"``.
        parameters: nested values that decided the run.
    """

    def __init__(
        self, database: Path | str, *, experiment: str, run: str, parameters: Mapping[str, Any] | None = None
    ) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        import mlflow

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # tells of each table it makes
        self.database = Path(database).resolve()
        self.experiment, self.run = experiment, run
        self._parameters = _flat(parameters or {})
        self._mlflow = mlflow
        self._client: Any = None
        self._id = ""
        self._epochs, self._done = 0, 0

    def begin(self, rows: Sequence[Row], *, done: int, epochs: int) -> None:
        """Take up the run of that name where it holds none but these rows, or begin it anew; add what it lacks.

        Raises:
            UsageError: the database cannot be used.
        """
        self._epochs, self._done = epochs, done
        try:
            self._client = self._mlflow.MlflowClient(f"sqlite:///{self.database}")
            self._id, recorded = self._take_up({row["epoch"] + 1 for row in rows})
            for row, moment in zip(rows, finished_at(rows, time.time()), strict=True):
                if row["epoch"] + 1 not in recorded:
                    self._add(row, moment)
        except Exception as error:
            raise UsageError(
                f"MLflow cannot use {self.database} ({type(error).__name__}: {error}); remove it, for all of it is "
                "made again from metrics.jsonl, or leave mlflow out of track."
            ) from error

    def epoch(self, row: Row) -> None:
        """Add a row."""
        self._add(row, time.time())
        self._done = row["epoch"] + 1

    def end(self) -> None:
        """Say how the run ended."""
        if self._id:
            self._client.set_terminated(self._id, "FINISHED" if self._done == self._epochs else "KILLED")

    def _take_up(self, steps: set[int]) -> tuple[str, set[int]]:
        """The run's id and the epochs that it holds already."""
        experiment = self._experiment_id()
        for found in self._client.search_runs([experiment], f"attributes.run_name = '{self.run}'"):
            recorded = {metric.step for metric in self._client.get_metric_history(found.info.run_id, "epoch")}
            if recorded and recorded <= steps:
                self._client.update_run(found.info.run_id, "RUNNING")
                return found.info.run_id, recorded
            self._client.delete_run(found.info.run_id)  # MLflow can hide a run, and cannot take a row from it
        made = self._client.create_run(experiment, run_name=self.run).info.run_id
        Param = self._mlflow.entities.Param
        parameters = [Param(name, value) for name, value in self._parameters.items()]
        for start in range(0, len(parameters), MOST_AT_ONCE):
            self._client.log_batch(made, params=parameters[start : start + MOST_AT_ONCE])
        return made, set()

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        try:
            folder = self.database.with_name("mlflow_artifacts").as_uri()
            return str(self._client.create_experiment(self.experiment, artifact_location=folder))
        except self._mlflow.MlflowException:  # a fold on another device was quicker
            return str(self._client.get_experiment_by_name(self.experiment).experiment_id)

    def _add(self, row: Row, moment: float) -> None:
        step, milliseconds = row["epoch"] + 1, round(1000 * moment)
        values = scalars(row) | {"epoch": float(step)}
        Metric = self._mlflow.entities.Metric
        metrics = [Metric(name, value, milliseconds, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Leaves by their dotted key, as text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = str(value)[:LONGEST_VALUE]
    return found
