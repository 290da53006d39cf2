"""Fold folders, manifest and summary of a run."""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.pipelines.run_files import MakeConfig, Refused, read_json
from uumamba.data.prepared import PreparedFolder
from uumamba.evaluation import EvaluationPair, evaluate, write_scores
from uumamba.evaluation.scores import SCORES_NAME
from uumamba.pipelines.models import checkpoint_paths
from uumamba.pipelines.report import report
from uumamba.pipelines.run_layout import (
    RunManifest,
    command_line,
    fold_folders,
    git_commit,
    print_run_summary,
    select_folders,
    write_run_summary,
)
from uumamba.pipelines.train import train
from uumamba.runtime.errors import CaseError, UsageError
from uumamba.runtime.files import write_json
from uumamba.runtime.observer import RunView
from uumamba.training import RunLog


def touch(run: Path, *names: str) -> list[Path]:
    """Make empty checkpoints."""
    paths = [run / name / "last.safetensors" for name in names]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.touch()
    return paths


def test_one_seed_has_no_folder_and_each_of_several_has_one(tmp_path: Path) -> None:
    assert [each.name for each in select_folders(tmp_path, fold="3")] == ["fold_3"]
    assert [each.name for each in select_folders(tmp_path, fold="cv", seeds=[7, 1])] == [
        f"seed_{seed}/fold_{fold}" for seed in (7, 1) for fold in range(5)
    ]


def test_folders_are_found_in_the_order_of_seeds_as_numbers(tmp_path: Path) -> None:
    touch(tmp_path, "seed_10/fold_0", "seed_9/fold_1", "seed_9/fold_0", "seed_x/fold_0", "fold_9")
    assert [each.title for each in fold_folders(tmp_path)] == ["seed 9, fold 0", "seed 9, fold 1", "seed 10, fold 0"]


def test_every_seed_of_a_fold_is_averaged_and_a_seed_is_a_run_of_its_own(tmp_path: Path, refused: Refused) -> None:
    zero, one, other = touch(tmp_path, "seed_0/fold_0", "seed_1/fold_0", "seed_1/fold_2")
    assert checkpoint_paths(tmp_path) == [zero, one, other]
    assert checkpoint_paths(tmp_path, fold="0") == [zero, one]
    assert checkpoint_paths(tmp_path / "seed_1") == [one, other]
    with refused("--fold", got="1"):
        checkpoint_paths(tmp_path, fold="1")


@pytest.mark.parametrize(
    ("found", "seeds"), [("fold_0", [0, 1]), ("seed_3/fold_0", None), (None, []), (None, [1, 1]), (None, [-1, 0])]
)
def test_seeds_other_than_those_of_the_run_and_repeated_or_negative_ones_are_refused(
    tmp_path: Path, found: str | None, seeds: list[int] | None, refused: Refused
) -> None:
    touch(tmp_path, *([found] if found else []))
    with refused("--seeds", got=seeds):
        select_folders(tmp_path, fold="0", seeds=seeds)


# manifest.json


def test_a_start_and_a_resume_are_an_entry_each_and_a_finished_run_gets_none(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    path = tmp_path / "manifest.json"
    path.write_text('{"starts": 3')  # a damaged file is replaced
    manifest = RunManifest(
        path, tiny_config(), PreparedFolder(tiny_prepared), fold="0", case_ids={"training": []}, device="cpu"
    )
    for done in range(3):
        manifest.on_start(RunView(epochs_done=done, epochs=2))
    starts = read_json(path)["starts"]
    assert [(entry["epochs_done"], entry["epochs"]) for entry in starts] == [(0, 2), (1, 2)]


def test_an_entry_describes_the_run_without_paths_and_a_refused_run_adds_none(
    tiny_run: Path, tiny_prepared: Path, tiny_config: MakeConfig
) -> None:
    path = tiny_run / "fold_0" / "manifest.json"
    text = path.read_text()
    [entry] = json.loads(text)["starts"]
    assert (entry["seed"], entry["fold"]) == (0, "0")
    assert entry["versions"]["torch"] == torch.__version__
    assert entry["data"] == {"name": "phantom", "sha256": PreparedFolder(tiny_prepared).sha256()}
    assert entry["cases"] == {"training": {"acdc": 8}, "validation": {"acdc": 2}}
    assert len(entry["config"]["sha256"]) == 64
    assert {"system", "processor", "cores", "device", "accelerator"} == entry["machine"].keys()
    assert not [word for word in text.split('"') if word.startswith(("/", "~", "file:")) or str(tiny_run) in word]
    with pytest.raises(UsageError):
        train(tiny_config(), data=tiny_prepared, out=tiny_run)
    assert path.read_text() == text


def test_the_hash_of_the_data_depends_on_contents_and_not_on_the_folder(tiny_prepared: Path, tmp_path: Path) -> None:
    original = PreparedFolder(tiny_prepared).sha256()
    moved = shutil.copytree(tiny_prepared, tmp_path / "moved")
    assert PreparedFolder(moved).sha256() == original
    case = next(moved.glob("cases/*/case.json"))
    case.write_text(json.dumps(json.loads(case.read_text()) | {"key": "another"}))
    assert PreparedFolder(moved).sha256() != original
    case.unlink()
    with pytest.raises(CaseError):
        PreparedFolder(moved).sha256()


def test_a_command_contains_only_the_last_part_of_a_path() -> None:
    given = ["/home/ada/bin/uumamba", "train", "/home/ada/my.yaml", "--out=/scratch/ada/a", "--set", "a.b=1/2"]
    assert command_line(given) == ["uumamba", "train", "my.yaml", "--out=a", "--set", "a.b=2"]
    assert command_line(["/home/ada/uumamba/__main__.py", "demo"]) == ["uumamba", "demo"], "python -m uumamba"
    assert command_line(["/home/ada/notebook.py", "John", "Doe"]) is None
    assert command_line([]) is None


def test_the_commit_is_that_of_the_code_and_shows_changed_files(tmp_path: Path) -> None:
    package, installed = tmp_path / "clone" / "package", tmp_path / "clone" / "venv" / "package"
    for folder in (package, installed):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    (tmp_path / "clone" / ".gitignore").write_text("venv\n")

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
        command = ["git", "-C", package.parent, *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for command in (["init"], ["add", "."], ["commit", "--message", "First"], ["tag", "v1"]):
        git(*command)
    assert git_commit(package) == {"commit": git("rev-parse", "HEAD"), "modified": False}
    (package / "__init__.py").write_text("changed = True\n")
    assert git_commit(package) == {"commit": git("rev-parse", "HEAD"), "modified": True}
    assert git_commit(installed) is None, "an environment inside a clone is not tracked"
    assert git_commit(tmp_path) is None


# summary.json


def log(run: Path, place: str, *rows: Mapping[str, Any]) -> None:
    (run / place).mkdir(parents=True)
    for epoch, row in enumerate(rows):
        RunLog(run / place / "metrics.jsonl").append({"epoch": epoch, "loss": 1.0, "seconds": 1.0} | dict(row))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Run of two seeds and two folds."""
    run = tmp_path / "run"
    log(run, "seed_0/fold_0", {"dice": 0.9, "dice_RV": 0.9}, {"dice": 0.4, "dice_RV": 0.3}, {"dice": None})
    log(run, "seed_0/fold_1", {"dice": 0.6, "dice_RV": 0.5})
    log(run, "seed_1/fold_0", {"dice": 0.7, "dice_RV": float("nan")})
    log(run, "seed_1/fold_1", {"dice": 0.7, "dice_RV": 0.7})
    log(run, "seed_1/fold_all", {"dice": None})
    return run


def test_the_last_validation_of_each_training_is_summarised(run: Path) -> None:
    write_run_summary(run)
    summary = read_json(run / "summary.json")
    found = [(each["seed"], each["fold"], each["epochs"]) for each in summary["trainings"]]
    assert found == [(0, "0", 3), (0, "1", 1), (1, "0", 1), (1, "1", 1)]
    mean, rv = summary["validation_dice"]["mean"], summary["validation_dice"]["RV"]
    assert mean["mean"] == pytest.approx(0.6)
    assert mean["sd_over_seeds"] == pytest.approx(0.2 / 2**0.5)
    assert (rv["n"], rv["mean"]) == (3, pytest.approx(0.5)), "a fold without the structure is in no mean"


def test_a_run_without_seeds_has_its_configurations_seed_and_without_validation_no_summary(tmp_path: Path) -> None:
    log(tmp_path, "fold_all", {"dice": None})
    write_run_summary(tmp_path)
    assert not (tmp_path / "summary.json").exists()
    log(tmp_path, "fold_0", {"dice": 0.5})
    write_json(tmp_path / "fold_0" / "config.json", {"run": {"seed": 17}})
    write_run_summary(tmp_path)
    assert read_json(tmp_path / "summary.json")["trainings"][0]["seed"] == 17


def test_the_terminal_shows_the_spread_of_several_trainings_only(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log(tmp_path / "folds", "fold_0", {"dice": 0.5})
    print_run_summary(tmp_path / "folds")
    assert capsys.readouterr().out == ""
    print_run_summary(run)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("Validation Dice of 4 trainings", "sd over seeds", "0.600"))
    log(tmp_path / "folds", "fold_1", {"dice": 0.7})
    print_run_summary(tmp_path / "folds")
    assert "sd over seeds" not in capsys.readouterr().out


def test_the_report_shows_seeds_and_their_spread(run: Path, tmp_path: Path) -> None:
    mask = np.ones((2, 2, 2), np.uint8)
    scores = evaluate([EvaluationPair("a", "a", mask, mask, (1.0, 1.0, 1.0))], structures={"RV": 1})
    write_scores(tmp_path / SCORES_NAME, scores.rows)
    html = report(tmp_path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(text in html for text in ("seed 1, fold 1", "over folds and seeds", "<td>4</td><td>0.600</td>"))
