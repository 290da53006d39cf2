"""Tests of the Dockerfile's text and of its commands.

The commands run in an empty virtual environment.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Instruction:
    """Instruction of a Dockerfile with its stage.

    Stage 0 is before the first FROM.
    """

    stage: int
    name: str
    argument: str


@pytest.fixture(scope="module")
def instructions(repository: Path) -> list[Instruction]:
    return parse((repository / "Dockerfile").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def copied(instructions: list[Instruction]) -> list[str]:
    """List the paths that the first stage copies from the build context."""
    copies = [each.argument.split() for each in instructions if each.name == "COPY"]
    return [source for words in copies if not words[0].startswith("--from=") for source in words[:-1]]


def test_there_are_two_stages_from_a_base_and_a_digest_given_as_arguments(instructions: list[Instruction]) -> None:
    bases = [each.argument.split()[0] for each in instructions if each.name == "FROM"]
    assert bases == ["${BASE_IMAGE}${BASE_DIGEST}"] * 2
    arguments = [each.argument.partition("=")[0] for each in instructions if each.stage == 0 and each.name == "ARG"]
    assert arguments == ["BASE_IMAGE", "BASE_DIGEST"]


def test_no_digest_is_written_down(repository: Path) -> None:
    assert re.search(r"[0-9a-f]{64}", (repository / "Dockerfile").read_text(encoding="utf-8")) is None


def test_every_copied_path_exists_and_reaches_the_build_context(repository: Path, copied: list[str]) -> None:
    assert copied
    assert [source for source in copied if not (repository / source).exists()] == []
    let_in = {
        line[1:]
        for line in (repository / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    assert set(copied) == let_in


def test_the_image_runs_uumamba_as_a_user_who_is_not_root(repository: Path, instructions: list[Instruction]) -> None:
    last = {each.name: each.argument for each in instructions if each.stage == 2}
    assert int(last["USER"].partition(":")[0]) > 0
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert json.loads(last["ENTRYPOINT"])[0] in project["scripts"]


def test_the_final_stage_takes_only_the_environment_and_installs_no_compiler(instructions: list[Instruction]) -> None:
    final = [each for each in instructions if each.stage == 2]
    assert [each.argument for each in final if each.name == "COPY"] == ["--from=build /opt/uumamba /opt/uumamba"]
    commands = " ".join(each.argument for each in final if each.name == "RUN")
    assert re.search(r"apt|apk|dnf|gcc|g\+\+|pip", commands) is None


def test_parsing_joins_continued_lines_and_counts_stages() -> None:
    parsed = parse("# note\nARG A=1\nFROM a AS b\nRUN one \\\n    two\nFROM c\nUSER 1\n")
    assert parsed == [
        Instruction(0, "ARG", "A=1"),
        Instruction(1, "FROM", "a AS b"),
        Instruction(1, "RUN", "one two"),
        Instruction(2, "FROM", "c"),
        Instruction(2, "USER", "1"),
    ]


def test_without_docker_and_buildah_the_image_is_refused_with_what_to_install(repository: Path, tmp_path: Path) -> None:
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    done = subprocess.run(
        [tmp_path / "bash", repository / ".ci" / "image"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        encoding="utf-8",
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "Fix: start docker, or apt-get install buildah mmdebstrap" in done.stderr


@pytest.mark.slow
def test_the_install_and_entry_commands_work_in_an_empty_environment(
    repository: Path, tmp_path: Path, instructions: list[Instruction], copied: list[str]
) -> None:
    source, environment, home = tmp_path / "source", tmp_path / "environment", tmp_path / "home"
    home.mkdir()
    copy(repository, source, copied)
    for each in instructions:
        if each.stage == 1 and each.name == "RUN":
            command = each.argument.replace("/opt/uumamba", shlex.quote(str(environment)))
            command = command.replace("python3 ", f"{shlex.quote(sys.executable)} ")
            run(["sh", "-ec", command], cwd=source, env=os.environ | {"TORCH_INDEX_URL": ""})
    last = {each.name: each.argument for each in instructions if each.stage == 2}
    entry = [*json.loads(last["ENTRYPOINT"]), *json.loads(last["CMD"])]
    path = last["ENV"].removeprefix("PATH=").replace("/opt/uumamba", str(environment)).replace("$PATH", os.defpath)
    assert "prepare" in run(entry, cwd=home, env={"PATH": path, "HOME": str(home)})


def parse(text: str) -> list[Instruction]:
    """Parse the instructions of a Dockerfile.

    Comments are removed and continued lines joined.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\s*\\\n\s*", " ", "\n".join(lines))
    found: list[Instruction] = []
    for line in joined.splitlines():
        name, _, argument = line.partition(" ")
        stage = sum(each.name == "FROM" for each in found) + (name == "FROM")
        found.append(Instruction(stage, name, argument.strip()))
    return found


def copy(repository: Path, target: Path, sources: list[str]) -> None:
    """Copy the build context as the Dockerfile's COPY lines do."""
    target.mkdir()
    for source in sources:
        if (repository / source).is_dir():
            shutil.copytree(repository / source, target / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(repository / source, target / source)


def run(command: list[str], *, cwd: Path, env: dict[str, str]) -> str:
    """Run a command that must succeed; return its output."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
