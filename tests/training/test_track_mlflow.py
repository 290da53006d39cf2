"""MLflow's database equals ``metrics.jsonl``, and no data is sent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # MLflow needs some seconds to create a database

SCRIPT = """
import json, sys
from pathlib import Path

opened = []

def listen(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        opened.append([event, str(arguments[1:] if event == "socket.connect" else arguments)])

sys.addaudithook(listen)
from uumamba.training.track_mlflow import MLflowTracker

database = Path(sys.argv[1]) / "mlflow.db"
rows = [{"epoch": epoch, "loss": 1.0 / (1 + epoch), "dice": None, "seconds": 5.0} for epoch in range(5)]

def track(done, new, run="fold_0", ends=True):
    parameters = {"optim": {"rho": 0.05}, "name": "demo"}
    tracker = MLflowTracker(database, experiment="demo", run=run, parameters=parameters)
    tracker.begin(rows[:done], done=done, epochs=5)
    for row in new:
        tracker.epoch(row)
    if ends:
        tracker.end()

def history():
    import mlflow
    client = mlflow.MlflowClient(f"sqlite:///{database}")
    found = client.search_runs([client.get_experiment_by_name("demo").experiment_id])
    return [
        {
            "name": run.info.run_name, "status": run.info.status, "params": run.data.params, "id": run.info.run_id,
            "tags": run.data.tags, "metrics": sorted(run.data.metrics),
            "loss": [[each.step, each.value] for each in client.get_metric_history(run.info.run_id, "loss")],
        }
        for run in sorted(found, key=lambda run: run.info.run_name)
    ]

stages = {}
track(0, rows[:3], ends=False)
stages["killed"] = history()
track(4, rows[4:])  # epoch 4 is in metrics.jsonl, but the kill came before MLflow recorded it
stages["resumed"] = history()
track(2, rows[2:3])
track(5, [], run="fold_1")
stages["cut"] = history()
from mlflow.telemetry import get_telemetry_client
print(json.dumps({"stages": stages, "opened": opened, "telemetry": get_telemetry_client() is not None}))
"""


def test_mlflow_has_each_epoch_once_and_opens_no_connection(tmp_path: Path) -> None:
    # MLflow sends nothing under pytest or in CI, so the variables that reveal them are not passed.
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "LANG") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        capture_output=True,
        encoding="utf-8",
        cwd=tmp_path,
        env=environment | {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["opened"] == []
    assert not found["telemetry"]
    killed, resumed, cut = (found["stages"][name] for name in ("killed", "resumed", "cut"))
    assert [(run["status"], run["loss"]) for run in killed] == [("RUNNING", losses(3))]
    assert [(run["status"], run["loss"]) for run in resumed] == [("FINISHED", losses(5))]
    assert resumed[0]["id"] == killed[0]["id"], "the same run is continued"
    assert [(run["name"], run["status"], run["loss"]) for run in cut] == [
        ("fold_0", "KILLED", losses(3)),
        ("fold_1", "FINISHED", losses(5)),
    ]
    assert cut[0]["id"] != resumed[0]["id"], "a run with later rows is replaced"
    assert cut[0]["params"] == {"optim.rho": "0.05", "name": "demo"}
    assert cut[0]["metrics"] == ["epoch", "loss", "seconds"]
    assert cut[0]["tags"].keys() == {"mlflow.runName"}, "neither user nor script is named"
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["mlflow.db"]


def losses(epochs: int) -> list[list[float]]:
    return [[1 + epoch, 1.0 / (1 + epoch)] for epoch in range(epochs)]
