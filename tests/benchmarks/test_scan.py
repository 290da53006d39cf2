"""The scan and layer benchmarks run, and a claim that does not hold is said."""

import json
from pathlib import Path

import pytest

from benchmarks import layer, scan
from benchmarks.scan import CPU_SHAPES, broken_claims


def test_the_scan_benchmark_writes_a_row_a_backend_and_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scan.main(["--shape", "1,4,2,64", "--json", str(tmp_path / "scan.json")]) == 0
    rows = json.loads((tmp_path / "scan.json").read_text(encoding="utf-8"))["rows"]
    assert {(row["name"], row["pass"]) for row in rows} >= {
        (name, each) for name in ("reference", "torch") for each in ("forward", "forward + backward")
    }
    assert all(0 <= row["min_s"] <= row["median_s"] for row in rows)


def test_the_layer_benchmark_writes_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "QUICK_SHAPES", ((1, 4, 4, 4),))
    layer.main(["--quick", "--json", str(tmp_path / "layer.json")])
    rows = json.loads((tmp_path / "layer.json").read_text(encoding="utf-8"))["rows"]
    assert {row["ratio"] for row in rows if row["name"] == "ours"} == {1.0}


def test_a_claim_that_the_rows_do_not_show_is_named() -> None:
    row = {"name": "native", "shape": str(CPU_SHAPES[0]), "layout": "last", "pass": "forward", "of its tensors": None}
    assert list(broken_claims(CPU_SHAPES[0], [row | {"ratio": 250.0, "of the limit": 1.5}])) == []
    slow, far = broken_claims(CPU_SHAPES[0], [row | {"ratio": 150.0, "of the limit": 2.5}])
    assert "150.0 times the loop, claimed 200" in slow
    assert "2.5 times the limit, claimed 2.2" in far
