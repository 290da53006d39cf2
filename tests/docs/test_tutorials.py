"""Each tutorial, run from top to bottom with small phantoms and short trainings."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.docs.manual_pages import SHELL, list_pages, read_fences, write_files
from tests.docs.shell_commands import run_as_main, split_commands
from tests.docs.tutorial_sizes import FOLDER, SMALLER, Smaller, shorten
from uumamba.cli import main

TUTORIALS = [page for page in list_pages(REPOSITORY) if page.startswith(FOLDER) and not page.endswith("index.md")]
STEPS_ABOVE = "needs the steps above"
"""Title of Python that a tutorial runs and the fast tests only compile."""
NOT_RUN = (("pip", "install"),)


def run_command(command: list[str], smaller: Smaller) -> None:
    """Run a command in this process; torchrun in processes of its own."""
    typed = " ".join(command)
    for beginning, options in smaller.appended.items():
        command = [*command, *options.split()] if typed.startswith(beginning) else command
    if command[0] == "uumamba":
        with pytest.raises(SystemExit) as ended:
            main(command[1:])
        assert not ended.value.code, typed
    elif command[:2] == ["python", "-m"]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", command[2:])
            try:
                run_as_main(command[2], patch)
            except SystemExit as end:
                if end.code:
                    raise AssertionError(typed) from end
    elif command[0] == "torchrun":
        program = [sys.executable, "-m", "torch.distributed.run", *command[1:]]
        path = os.pathsep.join([str(REPOSITORY), *sys.path])
        done = subprocess.run(program, env={**os.environ, "PYTHONPATH": path}, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
    else:
        assert tuple(command[:2]) in NOT_RUN, f"{typed}: run_command does not know it"


@contextmanager
def in_new_folder(folder: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def test_every_tutorial_has_a_line_in_the_table_and_every_replaced_text_occurs() -> None:
    assert sorted(SMALLER) == sorted(Path(page).stem for page in TUTORIALS)
    for page in TUTORIALS:
        text = "".join(fence.text for fence in read_fences(REPOSITORY, page))
        smaller = SMALLER[Path(page).stem]
        assert [old for old in smaller.replaced if old not in text] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # a command prints its warnings
@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_runs_from_top_to_bottom(page: str, tmp_path: Path) -> None:
    fences, smaller = read_fences(REPOSITORY, page), SMALLER[Path(page).stem]
    names = {"__name__": "__main__"}
    with in_new_folder(tmp_path):
        write_files(fences, tmp_path)
        for fence in fences:
            if fence.language == "python" and not fence.is_file and fence.title in {"", STEPS_ABOVE}:
                exec(compile(shorten(fence), str(fence), "exec"), names)  # the manual's own text
            elif fence.language in SHELL and not fence.is_only_parsed:
                for command in filter(None, split_commands(fence.text)):
                    run_command(command, smaller)
