"""Tests of the bitwise comparison of two commits."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import same_numbers
from benchmarks.checkouts import CommandFailed, check_packages, run_python
from benchmarks.same_numbers import compare_training, describe_difference, hash_files, read_losses


def write_fold(folder: Path, *, loss: float = 0.5, seconds: float = 1.0) -> Path:
    folder.mkdir()
    parts = {"region": 0.5, "pixel": 0.25}
    row = {"epoch": 3, "loss": loss, "loss_weights": parts, "seconds": seconds, "data_wait": seconds}
    (folder / "metrics.jsonl").write_text(json.dumps(row), encoding="utf-8")
    save_file({"net/bias": torch.zeros(2), "net/weight": torch.arange(6.0).reshape(2, 3)}, folder / "last.safetensors")
    return folder


def test_a_changed_loss_and_one_changed_bit_of_the_weights_are_named_but_times_may_differ(tmp_path: Path) -> None:
    older, same, newer = (
        write_fold(tmp_path / name, loss=loss, seconds=seconds)
        for name, loss, seconds in (("older", 0.5, 1.0), ("same", 0.5, 2.0), ("newer", 0.75, 1.0))
    )
    assert list(read_losses(older)) == [
        f"epoch 3, {name}" for name in ("epoch", "loss", "loss_weights.region", "loss_weights.pixel")
    ]
    assert dict(compare_training(older, same)) == {"losses": "", "weights": ""}
    changed = bytearray((newer / "last.safetensors").read_bytes())
    changed[-1] ^= 1  # the tensors are the end of the file, net/weight the last
    (newer / "last.safetensors").write_bytes(changed)
    found = dict(compare_training(older, newer))
    assert found["losses"] == "1 of 4 differ, first epoch 3, loss: 0.5 in the older, 0.75 in the newer (by 0.25)"
    assert found["weights"].startswith("1 of 2 differ, first net/weight: F32 [2, 3] ")


def test_a_missing_entry_and_an_empty_comparison_are_differences() -> None:
    found = describe_difference({"a": 1}, {"a": 1, "b": 2})
    assert found == "1 of 2 differ, first b: absent in the older, 2 in the newer"
    assert describe_difference({}, {}) == "nothing to compare"


def test_files_are_compared_by_their_decompressed_content(tmp_path: Path) -> None:
    contents = {"older": gzip.compress(bytes(1000), 1), "newer": gzip.compress(bytes(1000), 9)}
    contents["changed"] = gzip.compress(bytes(999) + b"\1")
    for name, content in contents.items():
        (tmp_path / name / "cases").mkdir(parents=True)
        (tmp_path / name / "cases" / "scan.nii.gz").write_bytes(content)
        (tmp_path / name / ".lock").write_text(name, encoding="utf-8")
    older, newer, changed = (hash_files(tmp_path / name, "**/*") for name in contents)
    assert list(older) == ["cases/scan.nii.gz"]
    assert describe_difference(older, newer) == ""
    assert describe_difference(older, changed).startswith("1 of 1 differ, first cases/scan.nii")


def test_a_failed_command_ends_its_row_and_not_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> Iterator[tuple[str, str]]:
        yield "data", ""
        raise CommandFailed("demo ended with 1")

    monkeypatch.setattr(same_numbers, "compare_demo", fail)
    monkeypatch.setattr(same_numbers, "compare_run", lambda *_: iter([("losses", ""), ("weights", "1 of 2 differ")]))
    side = same_numbers.Side(tmp_path, tmp_path)
    rows, problems = same_numbers.compare_all(side, side, same_numbers.RUNS[:1])
    assert [[row[key] for key in ("data", "losses", "weights", "predict")] for row in rows] == [
        ["equal", "-", "-", "-"],
        ["-", "equal", "differs", "-"],
    ]
    assert problems == ["demo: demo ended with 1", "SAM, weights: 1 of 2 differ"]


def test_packages_from_outside_the_checkout_end_the_comparison(tmp_path: Path) -> None:
    for package in ("uumamba", "uumamba/configs", "data_prep"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    check_packages(tmp_path)
    assert run_python(tmp_path, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])") == "1\n"
    (tmp_path / "data_prep").rename(tmp_path / "renamed")
    with pytest.raises(CommandFailed, match=r"expected packages in|No module named"):
        check_packages(tmp_path)
    with pytest.raises(CommandFailed, match=r"ended with 1\n(.|\n)*no such file"):
        run_python(tmp_path, "-c", "raise SystemExit('no such file')")
