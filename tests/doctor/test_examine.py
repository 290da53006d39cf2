"""The doctor says what runs and why the rest does not, and what will limit training."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from uumamba.cli import app
from uumamba.doctor import examine as doctor
from uumamba.doctor import measure_convolution, measure_disk
from uumamba.doctor.measure_convolution import advice, time_convolutions
from uumamba.doctor.measure_disk import DiskRate
from uumamba.doctor.measure_training import TrainingRate, verdict
from uumamba.ops import automatic_backend, scan_problems
from uumamba.runtime.errors import UsageError

DISK = DiskRate(write_mb_per_s=500.0, read_mb_per_s=1000.0)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is measured, at a size that takes no time."""
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
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert [name for name, scan in found.items() if scan.automatic] == [automatic_backend(device, torch.float32)]


def test_the_verb_prints_choice_reasons_rates_and_limit_and_leaves_nothing(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", "--folder", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert f"auto   {automatic_backend('cpu', torch.float32)}" in result.stdout or torch.cuda.is_available()
    for problem in scan_problems().values():
        assert problem in result.stdout
    for line in ("disk, written", "disk, read", "patches read", "patches augmented", "training steps"):
        assert line in result.stdout
    assert "A 3-D convolution takes" in result.stdout
    assert " will limit training" in result.stdout.replace("\n", " ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["absent", "file"])
def test_a_folder_that_is_none_is_refused(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=f"{folder} is no folder; name one that exists"):
        doctor.examine(tmp_path / folder)


def test_a_disk_is_measured_with_a_file_that_is_removed(tmp_path: Path) -> None:
    found = measure_disk.measure_disk(tmp_path)
    assert found.write_mb_per_s > 0
    assert found.read_mb_per_s > 0
    assert not list(tmp_path.iterdir())


def test_convolutions_are_timed_in_every_precision_of_a_cpu() -> None:
    found = time_convolutions("cpu")
    assert list(found) == ["float32", "bfloat16"]
    assert min(found.values()) > 0


def test_a_slow_autocast_is_named_with_the_cure_where_it_would_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {"float32": 0.01, "bfloat16": 0.04}
    monkeypatch.setattr(measure_convolution, "resolve_precision", lambda precision, device: "bfloat16")
    assert "4.00 of its float32 time in bfloat16, which precision auto would take: train 3-D networks with --set " in (
        advice(slow, "cuda")
    )
    assert "training.precision=float32" not in advice({"float32": 0.01, "bfloat16": 0.012}, "cuda")
    monkeypatch.setattr(measure_convolution, "resolve_precision", lambda precision, device: "float32")
    assert advice(slow, "cpu").endswith("in bfloat16; precision auto takes float32.")


@pytest.mark.parametrize(
    ("measured", "disk", "sentence"),
    [
        (rate(0.004, 0.2), DISK, "The processor will limit training: of a step's 205 ms the network takes 200,"),
        (rate(0.004, 0.02, device="cuda"), DISK, "The accelerator will limit training: a step takes it 21.0 ms,"),
        (rate(0.2, 0.049, device="cuda"), DISK, "--set training.workers=4 reads ahead."),
        (rate(0.9, 0.049, device="cuda"), DISK, "training.workers=8 reads ahead, and 18 would be needed of 8 cores."),
        (rate(0.004, 0.02), DiskRate(5.0, 5.0), "The disk will limit training wherever the prepared cases do not fit"),
    ],
)
def test_the_slowest_part_is_named(measured: TrainingRate, disk: DiskRate, sentence: str) -> None:
    assert sentence in verdict(measured, disk, cores=8)
