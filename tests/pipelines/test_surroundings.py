"""The environment, the terminal and its pipes decide nothing: the work is done and the exit code is its own."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.run_files import save_nifti

DRAW = """
import sys
from uumamba.evaluation.plots import plot_training
from uumamba.training.progress_plot import draw_progress
draw_progress([{"epoch": 0, "loss": 1.0, "dice": 0.5, "dice_$x^$": 0.5, "lr": 0.1}], sys.argv[1])
plot_training({"0 $_{": [{"epoch": 0, "loss": 1.0}], "1": []})
"""
BAD_STYLE = "backend: nonsense\nlines.linewidth: x\ntext.usetex: True\nfigure.dpi: 9999999\nno.such: 3\n"


def environment_with(changes: dict[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in {"MPLBACKEND", "COLUMNS"}}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | changes


@pytest.fixture(scope="module")
def usual_plot(tmp_path_factory: pytest.TempPathFactory) -> str:
    return draw(tmp_path_factory.mktemp("usual"), {})


def draw(folder: Path, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", DRAW, str(folder / "p.png")]
    done = subprocess.run(command, env=environment_with(environment), capture_output=True, cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr
    return hashlib.sha256((folder / "p.png").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "environment",
    [
        {"MPLBACKEND": "nonsense", "MATPLOTLIBRC": "{folder}/bad"},
        {"MPLBACKEND": "TkAgg", "DISPLAY": "", "MPLCONFIGDIR": "/proc/nowhere"},
    ],
    ids=["wrong names", "no display"],
)
def test_plots_are_the_same_files_in_any_environment(
    environment: dict[str, str], usual_plot: str, tmp_path: Path
) -> None:
    for name in ("bad", "matplotlibrc"):
        (tmp_path / name).write_text(BAD_STYLE)
    given = {key: value.format(folder=tmp_path) for key, value in environment.items()}
    assert draw(tmp_path, given) == usual_plot


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for name, last in (("a", 6), ("b", 5)):
        label = np.zeros((12, 12, 4), np.uint8)
        label[3:last, 3:8] = 1
        save_nifti(folder / f"{name}.nii.gz", label, (2.0, 2.0, 8.0))
    return folder


@pytest.mark.parametrize(
    ("environment", "redirection"),
    [
        ({}, ">&- 2>&- <&-"),
        ({}, "> /dev/full 2> /dev/full"),
        ({}, "2>&1 | true"),
        ({"PYTHONIOENCODING": "ascii:strict", "COLUMNS": "0", "TERM": ""}, ""),
    ],
)
def test_a_verb_does_its_work_whatever_becomes_of_its_output(
    environment: dict[str, str], redirection: str, labels: Path, tmp_path: Path
) -> None:
    script = f'"$0" -m uumamba evaluate --predictions {labels} --labels {labels} --out {tmp_path}/out {redirection}'
    command = ["bash", "-c", f"set -o pipefail; {script}", sys.executable]
    done = subprocess.run(command, env=environment_with(environment), timeout=120, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "out" / "scores.csv").read_text(encoding="utf-8").count("\n") == 3
    if not redirection:
        assert b"label_1" in done.stdout
