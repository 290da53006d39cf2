"""What is published is what was run: its configuration, its commit, its time. Nothing here trains."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import acdc_cpu
from benchmarks.acdc_cpu import STRUCTURES, main, row_of, run_variant
from uumamba.config import RunConfig, read_config
from uumamba.evaluation.scores import ScoreRow, write_scores
from uumamba.runtime.files import write_json, write_text

NUMBERS = dict.fromkeys(("dice", "hd95_mm", "nsd", "volume_ml", "label_volume_ml", "assd_mm"), 0.5)


def finish(config: RunConfig, *, out: Path, **_: Any) -> None:
    """What the whole way leaves behind, as far as the table reads it."""
    write_json(out / "run" / "fold_0" / "config.json", {"run": config.as_json(), "fold": "0"})
    write_text(out / "run" / "fold_0" / "metrics.jsonl", '{"epoch": 0, "seconds": 90}\n')
    scores = [ScoreRow("p1", "p1", "ED", name, **NUMBERS, group=None) for name in STRUCTURES]
    write_scores(out / "scores.csv", scores)
    write_json(out / "summary.json", {})


@pytest.fixture
def finished_at_once(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every run is over when it begins; the folders in the order of the runs."""
    folders: list[Path] = []

    def run(config: RunConfig, *, out: Path, **options: Any) -> None:
        folders.append(out)
        finish(config, out=out)

    monkeypatch.setattr("uumamba.pipelines.run.run", run)
    monkeypatch.setattr(acdc_cpu, "commit", lambda: "earlier")
    return folders


def table(folder: Path, *options: str) -> dict[str, Any]:
    target = folder / "table.json"
    main(["--raw", str(folder), "--out", str(folder / "runs"), "--json", str(target), *options])
    return json.loads(target.read_text(encoding="utf-8"))


def test_a_run_in_one_go_tells_both_times_and_its_commit(finished_at_once: list[Path], tmp_path: Path) -> None:
    result = table(tmp_path, "--only", "UMambaBot, SAM")
    (row,) = result["rows"]
    assert row["mean Dice"] == 0.5
    assert row["training minutes"] == 1.5
    assert 0 <= row["minutes in all"] < 1  # that of imports, which a cold disk takes seconds for
    assert result["commit"] == "earlier"


def test_a_resumed_run_leaves_its_whole_time_out(finished_at_once: list[Path], tmp_path: Path) -> None:
    write_text(tmp_path / "run" / "prepared" / "a", "begun by an earlier call")
    run_variant((), raw=tmp_path, out=tmp_path / "run")
    assert row_of("a", tmp_path / "run")["minutes in all"] == "-"


def test_a_finished_run_is_read_with_the_commit_that_it_was_run_at(
    finished_at_once: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = table(tmp_path, "--only", "UMambaBot, SAM")
    monkeypatch.setattr(acdc_cpu, "commit", lambda: "later")
    assert table(tmp_path, "--only", "UMambaBot, SAM") == first
    assert len(finished_at_once) == 1
    assert table(tmp_path, "--only", "ResEncUNet, SAM")["commit"] == "earlier, later"


def test_a_run_that_nobody_recorded_has_an_unknown_commit(tmp_path: Path) -> None:
    finish(read_config("acdc_cpu"), out=tmp_path / "runs" / "UMambaBot-SAM")
    assert table(tmp_path, "--only", "UMambaBot, SAM")["commit"] == "unknown"


def test_a_finished_run_of_another_configuration_is_not_published(finished_at_once: list[Path], tmp_path: Path) -> None:
    finish(read_config("acdc_cpu", ["optim.rho=0.1"]), out=tmp_path / "runs" / "UMambaBot-SAM")
    with pytest.raises(SystemExit, match=r"UMambaBot-SAM was run with another configuration than acdc_cpu is now"):
        table(tmp_path, "--only", "UMambaBot, SAM")
    assert not (tmp_path / "table.json").exists()


def test_a_quick_run_has_a_folder_of_its_own(finished_at_once: list[Path], tmp_path: Path) -> None:
    table(tmp_path, "--only", "UMambaBot, SAM", "--quick")
    table(tmp_path, "--only", "UMambaBot, SAM")
    assert finished_at_once == [tmp_path / "runs" / name for name in ("quick/UMambaBot-SAM", "UMambaBot-SAM")]
