"""Tests of the published table of ACDC on two cores."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import acdc_cpu
from uumamba.config import RunConfig, read_config
from uumamba.evaluation.scores import ScoreRow, write_scores
from uumamba.runtime.files import write_json, write_text

NUMBERS = dict.fromkeys(("dice", "hd95_mm", "nsd", "volume_ml", "label_volume_ml", "assd_mm"), 0.5)


def write_run(config: RunConfig, *, out: Path, **_: Any) -> None:
    """Write the files of a finished run that the table reads."""
    write_json(out / "run" / "fold_0" / "config.json", {"run": config.as_json(), "fold": "0"})
    write_text(out / "run" / "fold_0" / "metrics.jsonl", '{"epoch": 0, "seconds": 90}\n')
    scores = [ScoreRow("p1", "p1", "ED", name, **NUMBERS, group=None) for name in acdc_cpu.STRUCTURES]
    write_scores(out / "scores.csv", scores)
    write_json(out / "summary.json", {})


@pytest.fixture(autouse=True)
def _finish_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uumamba.pipelines.run.run", write_run)
    monkeypatch.setattr(acdc_cpu, "describe_commit", lambda: "earlier")


def make_table(folder: Path, *options: str, variant: str = "UMambaBot, SAM") -> dict[str, Any]:
    target = folder / "table.json"
    acdc_cpu.main(
        ["--raw", str(folder), "--out", str(folder / "runs"), "--json", str(target), "--only", variant, *options]
    )
    return json.loads(target.read_text(encoding="utf-8"))


def test_a_run_has_its_minutes_and_every_run_its_own_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_table(tmp_path)
    (row,) = first["rows"]
    assert (row["mean Dice"], row["training minutes"], first["commit"]) == (0.5, 1.5, "earlier")
    assert 0 <= row["minutes in all"] < 1  # the time of imports, seconds on a cold disk
    monkeypatch.setattr(acdc_cpu, "describe_commit", lambda: "later")
    assert make_table(tmp_path) == first, "a finished run is read"
    assert make_table(tmp_path, variant="ResEncUNet, SAM")["commit"] == "earlier, later"
    make_table(tmp_path, "--quick")
    assert (tmp_path / "runs" / "quick" / "UMambaBot-SAM" / "summary.json").exists()


def test_a_resumed_run_has_no_total_minutes_and_an_unrecorded_run_no_commit(tmp_path: Path) -> None:
    write_text(tmp_path / "run" / "prepared" / "a", "begun by an earlier call")
    acdc_cpu.run_variant((), raw=tmp_path, out=tmp_path / "run")
    assert acdc_cpu.summarize_run("a", tmp_path / "run")["minutes in all"] == "-"
    write_run(read_config("acdc_cpu"), out=tmp_path / "runs" / "UMambaBot-SAM")
    assert make_table(tmp_path)["commit"] == "unknown"


def test_a_finished_run_of_another_configuration_is_not_published(tmp_path: Path) -> None:
    write_run(read_config("acdc_cpu", ["optim.rho=0.1"]), out=tmp_path / "runs" / "UMambaBot-SAM")
    with pytest.raises(SystemExit, match="UMambaBot-SAM: got another configuration, expected the current acdc_cpu"):
        make_table(tmp_path)
    assert not (tmp_path / "table.json").exists()
