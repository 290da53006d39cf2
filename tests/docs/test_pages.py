"""Every command, snippet, configuration and link of README and the manual."""

import json
import os
import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.docs.manual_pages import SHELL, Fence, list_broken_links, list_pages, read_fences, write_files
from tests.docs.shell_commands import check_command, list_commands
from tests.docs.tutorial_sizes import shorten
from uumamba.config import read_config
from uumamba.runtime.errors import UumambaError

PAGES = list_pages(REPOSITORY)
FENCES = [fence for page in PAGES for fence in read_fences(REPOSITORY, page)]
FEDERATED = "acdc_federated"
BASE = "acdc_cpu"
"""Configuration of which a fence shows some keys."""
BY_KEY = ("training", "dataset", "preprocess", "augment", "inference")
"""Sections of which a fence shows some keys; it gives others whole."""
NEEDS_FILES = re.compile(r"""["'](?:\w+/)*runs/|\.pth["']""")
"""Python that reads a trained run or another's checkpoint."""


def of_language(*languages: str) -> list[Fence]:
    return [fence for fence in FENCES if fence.language in languages]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_understood(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fences = read_fences(REPOSITORY, page)
    write_files(fences, tmp_path)
    monkeypatch.chdir(tmp_path)
    for fence in fences:
        for command in list_commands(fence.text) if fence.language in SHELL else ():
            check_command(command)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []  # nothing was run


@pytest.mark.parametrize("fence", of_language("python"), ids=str)
def test_python_of_a_page_compiles(fence: Fence) -> None:
    compile(fence.text, str(fence), "exec")


@pytest.mark.parametrize("page", sorted({fence.page for fence in of_language("python")}))
def test_python_of_a_page_that_needs_nothing_runs_in_order(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for fence in read_fences(REPOSITORY, page):
        is_run = fence.language == "python" and not fence.is_only_parsed and not fence.is_file
        if is_run and not NEEDS_FILES.search(fence.text):
            exec(compile(shorten(fence), str(fence), "exec"), names)  # the manual's own text


@pytest.mark.parametrize("fence", of_language("yaml"), ids=str)
def test_yaml_of_a_page_is_a_configuration(fence: Fence, tmp_path: Path) -> None:
    given = yaml.safe_load(fence.text)
    if fence.is_file:
        write_files([fence], tmp_path)
        read_config(tmp_path / fence.title)
    elif not fence.is_only_parsed:
        for section in BY_KEY:
            if isinstance(given.get(section), dict):
                given |= {f"{section}.{key}": value for key, value in given.pop(section).items()}
        base = FEDERATED if any(key.startswith("federated") for key in given) else BASE
        read_config(base, [f"{key}={json.dumps(value)}" for key, value in given.items()])


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_of_a_page_exist(page: str) -> None:
    assert list_broken_links(REPOSITORY, page) == []


@pytest.mark.parametrize(
    "text",
    [
        "uumamba predict acdc --input a.nii.gz",  # --out is missing
        "uumamba predict acdc --input a.nii.gz --out b --output c",
        "uumamba train acdc_gpu --data a --out b",
        "uumamba train acdc_cpu --data a --out b --set optim.radius=1",
        "uumamba train acdc_cpu --data a --out b --fold 7",
        "uumamba predict acdc --input a --out b --part 3/2",
        "srun bash -c 'RANK=$SLURM_PROCID exec uumamba train acdc_3d --data a'",
        "torchrun --nproc 2 -m uumamba train acdc_3d --data a --out b",
        "torchrun --nproc-per-node 2 -m uumamba train acdc_3d --data a --out b --resumed",
        "docker run --rm uumamba predict data --out data/predictions",
        "python -m data_prep.phantoms.heart out --hearts 3",
        "python -m data_prep.phantoms.brain out",
        "cd folder && uumamba models --all  # a comment",
    ],
)
def test_a_planted_command_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [command] = list_commands(text)
    with pytest.raises((AssertionError, SystemExit, UumambaError)):
        check_command(command)


def test_commands_are_found_in_scripts_and_others_are_left_out() -> None:
    text = """#!/bin/bash
    #SBATCH --nodes=2
    export A=1 B=$(hostname | head -n 1)  # uumamba predict
    pip install uumamba
    docker build --tag uumamba .
    srun bash -c 'RANK=$SLURM_PROCID exec \\
        uumamba train acdc_3d --data prepared --out runs/acdc'
    A=1 .venv/bin/uumamba models > models.txt; echo uumamba && python3 -m data_prep.mnms --help
    """
    assert list_commands(text) == [
        ["uumamba", "train", "acdc_3d", "--data", "prepared", "--out", "runs/acdc"],
        ["uumamba", "models"],
        ["python", "-m", "data_prep.mnms", "--help"],
    ]


def test_links_to_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "b.md").write_text("# One thing\n## A `key`: value {#named}\n## One thing\n")
    (tmp_path / "docs" / "a.md").write_text(
        "[1](b.md#one-thing) [2](b.md#named) [3](b.md#one-thing_1) [4](https://e.org) ![5](c.png) [6](b.md#two) [7](#x)"
    )
    assert list_broken_links(tmp_path, "docs/a.md") == ["c.png", "b.md#two", "#x"]
    assert [os.fspath(page) for page in list_pages(tmp_path)][1:] == ["docs/a.md", "docs/b.md"]
