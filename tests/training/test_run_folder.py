"""Run folder: removal of unfinished files, and a readable log."""

import json
import math
from pathlib import Path

import pytest

from uumamba.runtime.errors import UumambaError
from uumamba.training import RunLog
from uumamba.training.run_folder import RunFolder


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    log = RunLog(tmp_path / "metrics.jsonl")
    for epoch in range(2):
        log.append({"epoch": epoch})
    return log


def test_the_lock_removes_the_unfinished_files_of_a_killed_process(tmp_path: Path) -> None:
    unfinished = tmp_path / ".unfinished-1-ab-last.safetensors"
    unfinished.write_text("half")
    with RunFolder(tmp_path).locked():
        assert not unfinished.exists()
        assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize("end", ['{"epoch": 2, "lo', '{"epoch": 2}', "[2]\n", "\x00\x00", '{"epoch": 2}}\n'])
def test_rows_from_the_first_incomplete_one_on_are_ignored(log: RunLog, end: str) -> None:
    with log.path.open("a") as stream:
        stream.write(end)
    assert [row["epoch"] for row in log.rows()] == [0, 1]
    log.cut(epochs=2)
    assert log.path.read_text(encoding="utf-8") == '{"epoch": 0}\n{"epoch": 1}\n'
    log.cut(epochs=0)
    assert log.path.read_text(encoding="utf-8") == ""


def test_numbers_that_are_not_finite_are_null_at_any_depth(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log")
    log.append({"loss": math.nan, "loss_weights": {"region": math.inf, "pixel": 0.5}})
    expected = {"loss": None, "loss_weights": {"region": None, "pixel": 0.5}}
    assert json.loads(log.path.read_text(encoding="utf-8"), parse_constant=pytest.fail) == expected


def test_a_full_disk_is_reported() -> None:
    with pytest.raises(UumambaError, match="could not be written"):
        RunLog("/dev/full").append({"epoch": 0})
