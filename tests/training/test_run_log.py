"""``metrics.jsonl`` is well formed whatever happened to it."""

import json
import math
from pathlib import Path

import pytest

from uumamba.training import RunLog


@pytest.mark.parametrize("torn", ['{"epoch": 2, "lo', '{"epoch": 2}', "[2]\n", "\x00\x00", '{"epoch": 2}}\n'])
def test_a_torn_row_and_what_follows_do_not_count(tmp_path: Path, torn: str) -> None:
    log = RunLog(tmp_path / "metrics.jsonl")
    for epoch in range(2):
        log.append({"epoch": epoch})
    with log.path.open("a") as stream:
        stream.write(torn)
    assert [row["epoch"] for row in log.rows()] == [0, 1]
    log.cut(epochs=2)
    assert log.path.read_text(encoding="utf-8") == '{"epoch": 0}\n{"epoch": 1}\n'


def test_numbers_that_are_not_finite_are_null_at_any_depth(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl")
    log.append({"loss": math.nan, "loss_weights": {"region": math.inf, "pixel": 0.5}})
    expected = {"loss": None, "loss_weights": {"region": None, "pixel": 0.5}}
    assert json.loads(log.path.read_text(encoding="utf-8"), parse_constant=pytest.fail) == expected


def test_cutting_to_no_epochs_leaves_an_empty_log(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "metrics.jsonl")
    log.append({"epoch": 0})
    log.cut(epochs=0)
    assert log.rows() == []
    assert log.path.read_text(encoding="utf-8") == ""
