"""ACDC in minutes: the script goes the whole way on a small set-up, and says what it could not measure."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import train_step
from benchmarks.acdc_minutes import NOT_MEASURED, keep_weights, main
from benchmarks.result_file import read_result
from uumamba.config import read_config
from uumamba.quantization import quantize_
from uumamba.training import Checkpoint, save_checkpoint

TINY = (
    "net.features=[4,8]",
    "net.strides=[[1,1],[2,2]]",
    "net.encoder_blocks=[1,1]",
    "net.decoder_blocks=[1]",
    "training.epochs=3",
    "training.batches_per_epoch=2",
    "training.batch_size=2",
    "training.patch_size=[32,32]",
    "dataset.name=phantom",
)
SET = [word for override in TINY for word in ("--set", override)]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(train_step, "PATIENTS", 5)
    return train_step.prepare_phantom(tmp_path, read_config("acdc_cpu")).path


def test_without_an_accelerator_nothing_is_trained_and_the_table_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--json", str(tmp_path / "minutes.json")]) == 0
    (row,) = read_result(tmp_path / "minutes.json")["rows"]
    assert row["minutes"] == 25.0
    assert {row[key] for key in ("value", "GPU in use %", "waited for data %")} == {NOT_MEASURED}
    assert [path.name for path in tmp_path.iterdir()] == ["minutes.json"]


@pytest.mark.slow
def test_stopped_and_called_again_it_ends_with_scores_and_weights(prepared: Path, tmp_path: Path) -> None:
    out, table = tmp_path / "out", tmp_path / "minutes.json"
    given = ["--prepared", str(prepared), "--out", str(out), "--config", "acdc_cpu", "--device", "cpu", *SET]
    given += ["--minutes", "10"]
    assert main([*given, "--call-minutes", "0.0001"]) == 75
    assert main([*given, "--json", str(table)]) == 0
    *validations, last = read_result(table)["rows"]
    assert validations
    assert all(0 <= row["value"] <= 1 for row in (*validations, last)), "the labels are at hand"
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))
    weights = load_file(out / "weights.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float16}
    for label in prepared.parent.glob("raw/**/*_gt.nii.gz"):
        label.unlink()
    assert main([*given, "--only-score", "--json", str(table)]) == 0
    assert read_result(table)["rows"][-1]["value"] == NOT_MEASURED


def test_weights_of_a_quantised_network_are_not_halved_as_some_would_fall_on_other_levels(tmp_path: Path) -> None:
    net = quantize_(torch.nn.Linear(256, 256), weight_bits=4, act_bits=None, first_last_bits=None)
    before = net.weight.detach().clone()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    folder = tmp_path / "run" / "fold_0"
    folder.mkdir(parents=True)
    save_checkpoint(folder / "last.safetensors", Checkpoint(state, None, {}, {}, None, {}, {}, {}))
    keep_weights(tmp_path)
    net.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(net.weight, before)
    net.load_state_dict({name: value.half() if value.is_floating_point() else value for name, value in state.items()})
    assert (net.weight != before).any(), "there is something to keep"
