"""Tests of ACDC in minutes, on a tiny network."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.acdc_minutes import NOT_MEASURED, main, write_weights
from benchmarks.result_file import read_result
from uumamba.data.prepared import PreparedFolder
from uumamba.quantization import quantize_
from uumamba.training import Checkpoint, save_checkpoint


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
    weights = load_file(out / "weights.safetensors")
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
    write_weights(tmp_path)
    net.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(net.weight, before)
    net.load_state_dict({name: value.half() if value.is_floating_point() else value for name, value in state.items()})
    assert (net.weight != before).any(), "half precision would change levels"
