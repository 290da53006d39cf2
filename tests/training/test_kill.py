"""Killed processes resume to the bits of an uninterrupted run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.tiny_run import assert_same_run, rows_of


@pytest.mark.slow
def test_runs_killed_at_chosen_and_random_moments_resume_bit_for_bit(repository: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("kill_runs.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repository)}
    subprocess.run([sys.executable, str(script), str(tmp_path)], env=environment, check=True, timeout=300)
    killed = [folder for folder in tmp_path.iterdir() if folder.name != "whole"]
    assert len(killed) == 6
    for folder in killed:
        assert_same_run(folder, tmp_path / "whole")
        assert [row["epoch"] for row in rows_of(folder)] == [0, 1, 2, 3]
        assert not list(folder.glob(".unfinished-*"))
