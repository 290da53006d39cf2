"""MLflow tracker, always equal to ``metrics.jsonl``."""

import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from uumamba.runtime.errors import UsageError
from uumamba.runtime.observer import Observer, Row, RunView
from uumamba.runtime.tree import join_keys
from uumamba.training.run_folder import end_times, finite_scalars

LONGEST_VALUE = 500  # characters of a parameter, the limit of older versions of MLflow


class MLflowTracker(Observer):
    """Observer that records scalars in a local database of MLflow.

    View them with ``mlflow ui --backend-store-uri sqlite:///RUN/mlflow.db``. Folds and seeds share the database, each
    as a run with its own name, so that they can be compared. No name of a user or machine is stored, and MLflow's
    telemetry is disabled for this process before the import. Creating the database takes MLflow some seconds, once.

    Args:
        database: the file; created when training begins.
        experiment: name of a group of runs, such as the configuration's name.
        run: name of the run in the experiment, such as ``"fold_0"``.
        parameters: nested options of the run.
    """

    packages: ClassVar[tuple[str, ...]] = ("mlflow", "sqlalchemy", "alembic")  # mlflow-skinny lacks the last two

    def __init__(
        self, database: Path | str, *, experiment: str, run: str, parameters: Mapping[str, Any] | None = None
    ) -> None:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        import mlflow

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # otherwise logs each new table
        self.database = Path(database).resolve()
        self.experiment, self.run = experiment, run
        self._parameters = join_keys(parameters) if parameters else {}
        self._mlflow = mlflow
        self._client: Any = None
        self._id = ""

    def on_start(self, run: RunView) -> None:
        """Continue the run of this name, and add missing rows.

        A run that holds other rows is replaced.

        Raises:
            UsageError: the database cannot be used.
        """
        try:
            self._client = self._mlflow.MlflowClient(f"sqlite:///{self.database}")
            self._id, recorded = self._continue_or_create({row["epoch"] + 1 for row in run.rows})
            for row, moment in zip(run.rows, end_times(run.rows, time.time()), strict=True):
                if row["epoch"] + 1 not in recorded:
                    self._add(row, moment)
        except Exception as error:
            raise UsageError(
                str(self.database),
                got=f"{type(error).__name__}: {error}",
                expected="a database of MLflow",
                fix="remove the file, which is rebuilt from metrics.jsonl, or remove mlflow from track",
            ) from error

    def on_epoch_saved(self, run: RunView, row: Row) -> None:
        self._add(row, time.time())

    def on_end(self, run: RunView, error: BaseException | None) -> None:
        """Mark the run as finished or killed."""
        if self._id:
            self._client.set_terminated(self._id, "FINISHED" if run.epochs_done == run.epochs else "KILLED")

    def _continue_or_create(self, steps: set[int]) -> tuple[str, set[int]]:
        """Return the run's id and its recorded epochs."""
        experiment = self._experiment_id()
        for found in self._client.search_runs([experiment], f"attributes.run_name = '{self.run}'"):
            recorded = {metric.step for metric in self._client.get_metric_history(found.info.run_id, "epoch")}
            if recorded and recorded <= steps:
                self._client.update_run(found.info.run_id, "RUNNING")
                return found.info.run_id, recorded
            self._client.delete_run(found.info.run_id)  # MLflow cannot remove a row from a run
        created = self._client.create_run(experiment, run_name=self.run).info.run_id
        for name, value in self._parameters.items():
            self._client.log_param(created, name, str(value)[:LONGEST_VALUE])
        return created, set()

    def _experiment_id(self) -> str:
        if self._client.get_experiment_by_name(self.experiment) is None:
            with suppress(self._mlflow.MlflowException):  # a fold on another device has just created it
                self._client.create_experiment(
                    self.experiment, artifact_location=self.database.with_name("mlflow_artifacts").as_uri()
                )
        return str(self._client.get_experiment_by_name(self.experiment).experiment_id)

    def _add(self, row: Row, moment: float) -> None:
        step, milliseconds = row["epoch"] + 1, round(1000 * moment)
        values = finite_scalars(row) | {"epoch": float(step)}
        metrics = [self._mlflow.entities.Metric(name, value, milliseconds, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)
