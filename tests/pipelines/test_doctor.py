"""The doctor says what runs and why the rest does not."""

import torch
from typer.testing import CliRunner

from uumamba.cli import app
from uumamba.ops import automatic_backend, scan_problems
from uumamba.pipelines import doctor


def test_every_backend_is_either_timed_or_explained(monkeypatch):
    monkeypatch.setattr(doctor, "_SHAPE", (1, 4, 2, 32))
    found = {scan.name: scan for scan in doctor.examine_scans()}
    assert {name for name, scan in found.items() if scan.problem} == set(scan_problems())
    for scan in found.values():
        assert (scan.problem is None) == (scan.forward_ms is not None) == (scan.both_ms is not None)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert [name for name, scan in found.items() if scan.automatic] == [automatic_backend(device, torch.float32)]


def test_the_verb_prints_the_choice_and_the_reasons(monkeypatch):
    monkeypatch.setattr(doctor, "_SHAPE", (1, 4, 2, 32))
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"auto   {automatic_backend('cpu', torch.float32)}" in result.stdout or torch.cuda.is_available()
    for problem in scan_problems().values():
        assert problem in result.stdout
