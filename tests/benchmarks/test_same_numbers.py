"""The comparison of two commits finds one changed byte, names it, and takes the code from where it should."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import same_numbers
from benchmarks.checkouts import CommandFailed, check_packages, run_python
from benchmarks.same_numbers import Side, compare_all, compare_training, difference, files_of, losses_of


def write_fold(folder: Path, *, loss: float = 0.5, seconds: float = 1.0) -> Path:
    folder.mkdir()
    rows = [{"epoch": epoch, "loss": loss / (epoch + 1), "seconds": seconds, "data_wait": seconds} for epoch in (0, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    save_file({"net/bias": torch.zeros(2), "net/weight": torch.arange(6.0).reshape(2, 3)}, folder / "last.safetensors")
    return folder


def test_equal_folds_compare_equal_whatever_their_times(tmp_path: Path) -> None:
    there, here = write_fold(tmp_path / "there"), write_fold(tmp_path / "here", seconds=2.0)
    assert dict(compare_training(there, here)) == {"losses": "", "weights": ""}


def test_one_changed_bit_of_the_weights_is_found_and_named(tmp_path: Path) -> None:
    there, here = write_fold(tmp_path / "there"), write_fold(tmp_path / "here")
    changed = bytearray((here / "last.safetensors").read_bytes())
    changed[-1] ^= 1  # the tensors are the end of the file, net/weight the last
    (here / "last.safetensors").write_bytes(changed)
    found = dict(compare_training(there, here))
    assert found["losses"] == ""
    assert found["weights"].startswith("1 of 2 differ, first net/weight: F32 [2, 3] ")


def test_the_first_loss_that_differs_is_named_with_the_difference(tmp_path: Path) -> None:
    there, here = write_fold(tmp_path / "there"), write_fold(tmp_path / "here", loss=0.75)
    expected = "2 of 4 differ, first epoch 0, loss: 0.5 there, 0.75 here (by 0.25)"
    assert difference(losses_of(there), losses_of(here)) == expected


def test_a_number_of_a_part_of_the_loss_is_named_by_both(tmp_path: Path) -> None:
    row = {"epoch": 3, "loss_weights": {"region": 0.5, "pixel": 0.25}}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row), encoding="utf-8")
    assert losses_of(tmp_path) == {
        "epoch 3, epoch": 3,
        "epoch 3, loss_weights.region": 0.5,
        "epoch 3, loss_weights.pixel": 0.25,
    }


def test_a_missing_entry_and_a_comparison_of_nothing_are_differences() -> None:
    assert difference({"a": 1}, {"a": 1, "b": 2}) == "1 of 2 differ, first b: absent there, 2 here"
    assert difference({}, {}) == "nothing to compare"


def test_files_are_compared_by_what_they_hold(tmp_path: Path) -> None:
    for name, level in (("there", 1), ("here", 9)):
        (tmp_path / name / "cases").mkdir(parents=True)
        (tmp_path / name / "cases" / "scan.nii.gz").write_bytes(gzip.compress(bytes(1000), level))
        (tmp_path / name / ".lock").write_text(name, encoding="utf-8")
    there, here = tmp_path / "there", tmp_path / "here"
    assert list(files_of(there, "**/*")) == ["cases/scan.nii.gz"]
    assert difference(files_of(there, "**/*"), files_of(here, "**/*")) == ""
    (here / "cases" / "scan.nii.gz").write_bytes(gzip.compress(bytes(999) + b"\1"))
    assert difference(files_of(there, "**/*"), files_of(here, "**/*")).startswith("1 of 1 differ, first cases/scan.nii")


def test_a_command_that_fails_ends_its_row_and_not_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> Iterator[tuple[str, str]]:
        yield "data", ""
        raise CommandFailed("demo ended with 1")

    monkeypatch.setattr(same_numbers, "compare_demo", fail)
    monkeypatch.setattr(same_numbers, "compare_run", lambda *_: iter([("losses", ""), ("weights", "1 of 2 differ")]))
    side = Side(tmp_path, tmp_path)
    (demo, sam), problems = compare_all(side, side, same_numbers.RUNS[:1])
    assert (demo["data"], demo["losses"], demo["weights"]) == ("equal", "-", "-")
    assert (sam["losses"], sam["weights"], sam["predict"]) == ("equal", "differs", "-")
    assert problems == ["demo: demo ended with 1", "SAM, weights: 1 of 2 differ"]


def test_packages_come_from_the_checkout_or_the_comparison_ends(tmp_path: Path) -> None:
    for package in ("uumamba", "uumamba/configs", "data_prep"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    check_packages(tmp_path)
    assert run_python(tmp_path, "-c", "import os; print(os.environ['OMP_NUM_THREADS'])") == "1\n"
    (tmp_path / "data_prep" / "__init__.py").unlink()
    (tmp_path / "data_prep").rmdir()
    with pytest.raises(CommandFailed, match=r"expected those in|No module named"):
        check_packages(tmp_path)
    with pytest.raises(CommandFailed, match=r"ended with 1\n(.|\n)*no such file"):
        run_python(tmp_path, "-c", "raise SystemExit('no such file')")
