"""The preparation benchmark runs, says what it leaves out, and names a claim that does not hold."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from benchmarks import prepare
from benchmarks.prepare import broken_claims, write_volume


def test_without_nnunet_ours_alone_is_measured_and_the_table_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "QUICK_VOLUME", (24, 24, 20))
    monkeypatch.setattr(prepare, "find_spec", lambda name: None)
    assert prepare.main(["--quick", "--json", str(tmp_path / "prepare.json")]) == 0
    (row,) = json.loads((tmp_path / "prepare.json").read_text(encoding="utf-8"))["rows"]
    assert (row["name"], row["shape"], row["ratio"]) == ("uumamba, CT", "(24, 24, 20)", None)
    assert row["median_s"] > 0
    assert row["peak_mb"] > 100  # the process, imports included
    assert "nnU-Net not installed: left out" in capsys.readouterr().out


def test_the_volume_is_the_same_each_time_and_its_structures_are_bright(tmp_path: Path) -> None:
    stored = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (case,) = write_volume(tmp_path / name, (64, 60, 8)).cases
        assert case.label is not None
        stored.append([np.asarray(nib.load(path).dataobj) for path in (case.image, case.label)])
    (image, label), again = stored
    assert np.array_equal(image, again[0])
    assert image.dtype == np.int16
    assert np.unique(label).tolist() == [0, 1, 2, 3]
    assert image[label == 1].mean() == pytest.approx(330, abs=5)
    assert (image < -500).any()


def test_a_claim_that_the_rows_do_not_show_is_named() -> None:
    rows = [
        {"name": "uumamba, CT", "ratio": 2.5, "peak_mb": 1000},
        {"name": "nnU-Net, CT", "ratio": 1.0, "peak_mb": 9000},
        {"name": "uumamba, ACDC", "ratio": 3.1, "peak_mb": 300},
    ]
    assert list(broken_claims(rows)) == []
    slow, large, slower = broken_claims([rows[0] | {"ratio": 1.5, "peak_mb": 5000}, rows[1], rows[2] | {"ratio": 2.9}])
    assert slow == "CT: 1.5 times as fast as nnU-Net, claimed 2"
    assert large == "CT: a peak of 5000 MiB, claimed under 4096"
    assert slower == "ACDC: 2.9 times as fast as nnU-Net, claimed 3"
