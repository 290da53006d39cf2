"""Doctor: backends, reasons against others, and the limit of training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from uumamba.cli import app
from uumamba.doctor import examine as doctor
from uumamba.doctor import measure_convolution, measure_disk
from uumamba.doctor.measure_convolution import advice
from uumamba.doctor.measure_disk import DiskRate
from uumamba.doctor.measure_training import TrainingRate, verdict
from uumamba.ops import automatic_backend, scan_problems

DISK = DiskRate(write_mb_per_s=500.0, read_mb_per_s=1000.0)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure everything at a small size."""
    monkeypatch.setattr(doctor, "_SHAPE", (1, 4, 2, 32))
    monkeypatch.setattr(measure_disk, "MOST_MB", 2)
    monkeypatch.setattr(measure_convolution, "SHAPES", dict.fromkeys(("cpu", "cuda"), (1, 2, 4, 4, 4)))


def rate(read_s: float, step_s: float, *, device: str = "cpu", megabytes: float = 0.2) -> TrainingRate:
    return TrainingRate(read_s, 0.001, step_s, megabytes, 8, "UMambaBot", device)


def test_every_backend_is_either_timed_or_explained() -> None:
    found = {scan.name: scan for scan in doctor.examine_scans()}
    assert {name for name, scan in found.items() if scan.problem} == set(scan_problems())
    for scan in found.values():
        assert (scan.problem is None) == (scan.forward_ms is not None) == (scan.both_ms is not None)
    assert [name for name, scan in found.items() if scan.automatic] == [automatic_backend(DEVICE, torch.float32)]


def test_the_verb_prints_backends_rates_and_the_limit_and_leaves_no_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--folder", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    printed = result.stdout.replace("\n", " ")
    for text in (
        f"auto   {automatic_backend(DEVICE, torch.float32)}",
        *("disk, written", "disk, read", "patches read", "patches augmented", "training steps"),
        *("A 3-D convolution takes", "of its float32 time in bfloat16", " will limit training"),
    ):
        assert text in printed
    assert all(problem in result.stdout for problem in scan_problems().values())
    assert not list(tmp_path.iterdir())


def test_json_holds_what_a_report_of_a_fault_needs_and_no_path(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json", "--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found.keys() == {"machine", "scans", "disk", "training", "convolution_s", "verdict"}
    assert found["machine"].keys() == doctor.machine().keys()
    assert [scan["name"] for scan in found["scans"] if scan["automatic"]] == [automatic_backend(DEVICE, torch.float32)]
    assert tmp_path.name not in result.stdout


@pytest.mark.parametrize(("folder", "what"), [("absent", "which does not exist"), ("file", "a file")])
def test_a_path_that_is_no_folder_is_refused(tmp_path: Path, folder: str, what: str, refused: Any) -> None:
    (tmp_path / "file").touch()
    with refused("--folder", got=f"{tmp_path / folder}, {what}"):
        doctor.examine(tmp_path / folder)


def test_slow_autocast_is_reported_with_a_fix_if_precision_auto_selects_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fix = {"float32": 0.01, "bfloat16": 0.04}, "training.precision=float32"
    monkeypatch.setattr(measure_convolution, "resolve_precision", lambda precision, device: "bfloat16")
    assert fix in advice(slow, "cuda")
    assert "4.00 of its float32 time in bfloat16" in advice(slow, "cuda")
    assert fix not in advice({"float32": 0.01, "bfloat16": 0.012}, "cuda")
    monkeypatch.setattr(measure_convolution, "resolve_precision", lambda precision, device: "float32")
    assert fix not in advice(slow, "cpu")


@pytest.mark.parametrize(
    ("measured", "disk", "parts"),
    [
        (rate(0.004, 0.2), DISK, ("The processor", "205 ms", "200,")),
        (rate(0.004, 0.02, device="cuda"), DISK, ("The accelerator", "21.0 ms")),
        (rate(0.2, 0.049, device="cuda"), DISK, ("The data", "training.workers=4 ")),
        (rate(0.9, 0.049, device="cuda"), DISK, ("The data", "training.workers=8 ", "18 would be needed of 8 cores")),
        (rate(0.004, 0.02), DiskRate(5.0, 5.0), ("The disk", "40.0 ms")),
    ],
)
def test_the_slowest_part_is_named(measured: TrainingRate, disk: DiskRate, parts: tuple[str, ...]) -> None:
    found = verdict(measured, disk, cores=8)
    assert all(part in found for part in parts), found
