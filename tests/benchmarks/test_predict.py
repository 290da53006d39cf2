"""Tests of the benchmark of prediction."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks import predict
from benchmarks.predict_peer import make_plans


def test_a_quick_run_predicts_a_frame_and_writes_its_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = tmp_path / "raw" / "patient001" / "patient001_frame01.nii.gz"
    frame.parent.mkdir(parents=True)
    array = np.random.default_rng(0).integers(1, 200, (40, 44, 2), dtype=np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([1.5, 1.5, 10.0, 1.0])), frame)
    table = tmp_path / "predict.json"
    command = ["--acdc", str(tmp_path / "raw"), "--json", str(table), "--quick", "--threads", "1"]
    assert predict.main(command) == 0
    assert "nnU-Net is not installed and left out" in capsys.readouterr().out
    (row,) = json.loads(table.read_text(encoding="utf-8"))["rows"]
    assert (row["name"], row["shape"], row["ratio"]) == ("uumamba, not mirrored", "the frame", None)
    assert row["median_s"] > 0
    assert row["peak_mb"] > 100


def test_a_slow_frame_and_a_small_ratio_are_named() -> None:
    rows = [
        {"name": "uumamba, mirrored", "shape": "1 frame", "median_s": 8.1, "ratio": None},
        {"name": "uumamba, mirrored", "shape": "20 frames", "median_s": 50.0, "ratio": 2.9},
        {"name": "uumamba, not mirrored", "shape": "20 frames", "median_s": 20.0, "ratio": 3.0},
    ]
    assert list(predict.find_broken_claims(rows)) == [
        "uumamba, mirrored: one frame takes 8.1 s, expected at most 8.0",
        "uumamba, mirrored: 2.9 times as fast as nnU-Net, expected at least 3.0",
    ]


def test_the_peer_has_a_stride_and_a_width_for_each_stage() -> None:
    options = make_plans()["configurations"]["2d"]["architecture"]["arch_kwargs"]
    assert len(options["features_per_stage"]) == len(options["strides"]) == options["n_stages"]
