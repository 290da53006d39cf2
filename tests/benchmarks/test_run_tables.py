"""Tests of the tables of complete runs: ACDC and vessel phantoms."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import acdc_cpu
from benchmarks.acdc_minutes import NOT_MEASURED, main, write_weights
from benchmarks.result_file import RESULTS, read_result
from benchmarks.vessels import find_broken_claims, summarize_run
from uumamba.config import RunConfig, read_config
from uumamba.data.prepared import PreparedFolder
from uumamba.evaluation.scores import TREES_NAME, ScoreRow, write_scores
from uumamba.quantization import quantize_
from uumamba.runtime.files import write_json, write_text
from uumamba.training import Checkpoint, read_checkpoint, save_checkpoint

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
    write_run(read_config("acdc_cpu", acdc_cpu.SAM), out=tmp_path / "runs" / "UMambaBot-SAM")
    assert make_table(tmp_path)["commit"] == "unknown"


def test_a_finished_run_of_another_configuration_is_not_published(tmp_path: Path) -> None:
    write_run(read_config("acdc_cpu", [*acdc_cpu.SAM, "optim.rho=0.1"]), out=tmp_path / "runs" / "UMambaBot-SAM")
    with pytest.raises(SystemExit, match="UMambaBot-SAM: got another configuration, expected the current acdc_cpu"):
        make_table(tmp_path)
    assert not (tmp_path / "table.json").exists()


@pytest.mark.slow
def test_a_stopped_run_is_resumed_and_ends_with_scores_and_weights(
    phantom: PreparedFolder, tiny_settings: list[str], tmp_path: Path
) -> None:
    out, table = tmp_path / "out", tmp_path / "minutes.json"
    given = ["--prepared", str(phantom.path), "--out", str(out), "--config", "acdc_cpu", "--device", "cpu"]
    given += [*tiny_settings, "--set", "training.epochs=3", "--minutes", "10"]
    assert main([*given, "--call-minutes", "0.0001"]) == 75
    assert main([*given, "--json", str(table)]) == 0
    rows = read_result(table)["rows"]
    assert len(rows) > 1
    assert all(0 <= row["value"] <= 1 for row in rows)
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))
    weights = read_checkpoint(out / "weights.safetensors").net
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float16}
    raw = phantom.path.parent / "raw"
    raw.rename(raw.with_name("elsewhere"))
    assert main([*given, "--only-score", "--json", str(table)]) == 0
    raw.with_name("elsewhere").rename(raw)
    assert read_result(table)["rows"][-1]["value"] == NOT_MEASURED, "labels are absent"


def test_weights_of_a_quantized_network_are_not_converted_to_half(tmp_path: Path) -> None:
    net = quantize_(torch.nn.Linear(256, 256), weight_bits=4, act_bits=None, first_last_bits=None)
    before = net.weight.detach().clone()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    (tmp_path / "run" / "fold_0").mkdir(parents=True)
    checkpoint = Checkpoint(state, None, {}, {}, None, {}, {}, {})
    save_checkpoint(tmp_path / "run" / "fold_0" / "last.safetensors", checkpoint)
    write_weights(tmp_path, "0")
    net.load_state_dict(read_checkpoint(tmp_path / "weights.safetensors").net)
    assert torch.equal(net.weight, before)
    net.load_state_dict({name: value.half() if value.is_floating_point() else value for name, value in state.items()})
    assert (net.weight != before).any(), "half precision would change levels"


def make_score(case_id: str, structure: str, dice: float, cl_dice: float = 0.5, length_error: float = 1.0) -> ScoreRow:
    known: dict[str, Any] = dict.fromkeys(("hd95_mm", "nsd", "volume_ml", "label_volume_ml", "assd_mm"), 1.0)
    known |= {f"betti{degree}_error": 1 for degree in range(3)} | {"cl_dice": cl_dice, "length_error": length_error}
    return ScoreRow(case_id, case_id, None, structure, dice, group=None, **known)


@pytest.mark.parametrize(
    ("rows", "trees", "swapped", "expected"),
    [
        (
            [("a", "coronary", 0.8, 0.9, -0.25), ("b", "coronary", 0.6, 0.7, 0.75)],
            [],
            [],
            {"mean Dice": 0.7, "tree clDice": 0.8, "parts wrong": 1.0, "cases": 2, "tree length error": 0.5},
        ),
        (
            [("a", "RenalR", 0.5), ("a", "Zone5", 0.9)],
            [("a", "whole tree", 0.95, 1.0)],
            ["a: RenalR"],
            {"mean Dice": 0.7, "lowest structure": 0.5, "tree clDice": 1.0},
        ),
    ],
    ids=["one structure is its own tree", "several structures form one tree"],
)
def test_a_row_has_means_of_scores_and_trees_with_absolute_length_errors(
    tmp_path: Path, rows: list[Any], trees: list[Any], swapped: list[str], expected: dict[str, float]
) -> None:
    write_scores(tmp_path / "scores.csv", [make_score(*row) for row in rows])
    if trees:
        write_scores(tmp_path / TREES_NAME, [make_score(*row) for row in trees])
    write_json(tmp_path / "summary.json", {"sides": {"n_checked": 2, "swapped": swapped}})
    write_json(tmp_path / "measured.json", {"commits": ["abc"], "minutes": 12.5})
    row = summarize_run("net", tmp_path)
    assert row | expected | {"sides swapped": len(swapped), "minutes": 12.5} == row
    assert json.dumps(row)


@pytest.mark.parametrize("phantom", ["coronary", "aorta"])
def test_the_published_rows_show_the_claims(phantom: str) -> None:
    assert not list(find_broken_claims(phantom, read_result(RESULTS / f"{phantom}_phantom.json")["rows"]))
