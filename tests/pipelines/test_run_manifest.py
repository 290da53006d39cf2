"""``manifest.json``: an entry for each time that training began, which says with what and names nobody."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from uumamba.config import RunConfig
from uumamba.data.prepared import PreparedFolder
from uumamba.pipelines.run_manifest import RunManifest, command_line, git_commit
from uumamba.pipelines.train import train
from uumamba.runtime.errors import CaseError

MakeConfig = Callable[..., RunConfig]


def test_a_start_and_a_resume_are_an_entry_each_and_a_finished_run_gets_none(
    tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path
) -> None:
    made = tmp_path / "manifest.json"
    manifest = RunManifest(made, tiny_config(), PreparedFolder(tiny_prepared), fold="0", device="cpu")
    manifest.begin([], done=0, epochs=2)
    manifest.begin([{"epoch": 0}], done=1, epochs=2)
    manifest.begin([{"epoch": 0}, {"epoch": 1}], done=2, epochs=2)
    starts = json.loads(made.read_text())["starts"]
    assert [(entry["epochs_done"], entry["epochs"]) for entry in starts] == [(0, 2), (1, 2)]


def test_an_entry_says_what_the_run_was_made_with_and_no_path(tiny_run: Path, tiny_prepared: Path) -> None:
    text = (tiny_run / "fold_0" / "manifest.json").read_text()
    [entry] = json.loads(text)["starts"]
    assert entry["seed"] == 0
    assert entry["fold"] == "0"
    assert entry["versions"]["torch"] == torch.__version__
    assert entry["data"] == {"name": "phantom", "sha256": PreparedFolder(tiny_prepared).sha256()}
    assert len(entry["config"]["sha256"]) == 64
    assert {"system", "processor", "cores", "device", "accelerator"} == entry["machine"].keys()
    assert not [word for word in text.split('"') if word.startswith(("/", "~", "file:")) or str(tiny_run) in word]


def test_a_broken_manifest_is_begun_anew(tiny_prepared: Path, tiny_config: MakeConfig, tmp_path: Path) -> None:
    made = tmp_path / "manifest.json"
    made.write_text('{"starts": 3')
    RunManifest(made, tiny_config(), PreparedFolder(tiny_prepared), fold="0", device="cpu").begin([], done=0, epochs=2)
    assert len(json.loads(made.read_text())["starts"]) == 1


def test_a_run_that_is_refused_leaves_the_manifest_as_it_was(
    tiny_run: Path, tiny_prepared: Path, tiny_config: MakeConfig
) -> None:
    before = (tiny_run / "fold_0" / "manifest.json").read_text()
    with pytest.raises(ValueError, match="got a checkpoint"):
        train(tiny_config(), data=tiny_prepared, out=tiny_run)
    assert (tiny_run / "fold_0" / "manifest.json").read_text() == before


def test_the_data_hash_knows_contents_and_folds_and_not_places(tiny_prepared: Path, tmp_path: Path) -> None:
    original = PreparedFolder(tiny_prepared).sha256()
    moved = shutil.copytree(tiny_prepared, tmp_path / "moved")
    assert PreparedFolder(moved).sha256() == original
    case = next(moved.glob("cases/*/case.json"))
    case.write_text(json.dumps(json.loads(case.read_text()) | {"key": "another"}))
    assert PreparedFolder(moved).sha256() != original
    case.unlink()
    with pytest.raises(CaseError, match="not prepared"):
        PreparedFolder(moved).sha256()


def test_a_command_names_no_folder_but_its_last_part() -> None:
    given = [
        "/home/ada/venv/bin/uumamba",
        "train",
        "/home/ada/my.yaml",
        "--out=/scratch/ada/runs/a",
        "--set",
        "a.b=1/2",
    ]
    assert command_line(given) == ["uumamba", "train", "my.yaml", "--out=a", "--set", "a.b=2"]
    assert command_line(["/home/ada/notebook.py", "John", "Doe"]) is None
    assert command_line([]) is None


def test_the_commit_is_that_of_the_code_and_says_when_files_differ(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    package = clone / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (clone / ".gitignore").write_text("venv\n")

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
        done = subprocess.run(["git", "-C", clone, *identity, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "--message", "First")
    git("tag", "v1")
    assert git_commit(package) == {"commit": git("rev-parse", "HEAD"), "modified": False}
    (package / "__init__.py").write_text("changed = True\n")
    assert git_commit(package) == {"commit": git("rev-parse", "HEAD"), "modified": True}
    installed = clone / "venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert git_commit(installed) is None, "an environment in somebody's clone is not that clone's code"
    assert git_commit(tmp_path) is None
