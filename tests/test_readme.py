"""Tests of the README: verbs, links and examples."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import typer
import yaml

from uumamba.cli import app
from uumamba.config import read_config

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")


def test_the_table_of_verbs_is_the_command_line(repository: Path) -> None:
    named = re.findall(
        r"^\| `uumamba (\w+)", (repository / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert set(named) == set(typer.main.get_command(app).commands)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_somewhere(repository: Path, page: str) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", (repository / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (repository / link).exists()] == []


def test_every_path_in_the_table_of_new_things_exists(repository: Path) -> None:
    text = (repository / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:uumamba|data_prep|configs|benchmarks|tests)/[\w/.]*)`", text)
    real = [path for path in paths if not re.search(r"(^|[/_])x\.", path)]
    assert len(real) > 5
    assert [path for path in real if not (repository / path).exists()] == []


def test_the_examples_without_a_trained_run_work(repository: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    runnable = [block for block in blocks if "load_" not in block]
    assert runnable
    script = "".join(f"exec({block!r}, {{'__name__': '__main__'}})\n" for block in runnable)
    run(["-c", script], repository)


def test_each_command_of_data_prep_that_is_named_anywhere_helps_without_a_warning(repository: Path) -> None:
    texts = [repository / page for page in PAGES] + sorted((repository / "data_prep").rglob("*.py"))
    named = {name for text in texts for name in re.findall(r"python -m (data_prep(?:\.\w+)+)", text.read_text("utf-8"))}
    phantoms = {"data_prep.phantoms.coronary", "data_prep.phantoms.aorta"}
    assert {"data_prep.mnms", "data_prep.vendor_shift", *phantoms} <= named
    with ThreadPoolExecutor() as threads:
        helped = threads.map(lambda name: run(["-m", name, "--help"], repository), sorted(named))
        assert all(f"python -m {name}" in printed for name, printed in zip(sorted(named), helped, strict=True))


def run(arguments: list[str], repository: Path) -> str:
    """Run Python in a process without warnings; return its output."""
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, cwd=repository, capture_output=True, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, ""), arguments
    return done.stdout


def test_each_part_of_a_configuration_in_the_readme_is_understood(repository: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (repository / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    for block in blocks:
        given = yaml.safe_load(block)
        for section in ("training", "dataset"):  # of which the README shows a key; others are given whole
            given |= {f"{section}.{key}": value for key, value in given.pop(section, {}).items()}
        read_config("acdc_cpu", [f"{key}={json.dumps(value)}" for key, value in given.items()])
