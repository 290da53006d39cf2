"""Tests of the contents of a wheel and of an editable install."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from setuptools import find_packages

PROJECT_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
PACKAGES = ("uumamba", "data_prep", "configs")


def test_every_folder_of_modules_is_a_package(repository: Path) -> None:
    folders = {file.parent for name in PACKAGES[:2] for file in (repository / name).rglob("*.py")}
    found = find_packages(str(repository), include=["uumamba*", "data_prep*"])
    assert {str(folder.relative_to(repository)).replace("/", ".") for folder in folders} == set(found)


@pytest.fixture(scope="module")
def source(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the sources without results of earlier builds."""
    folder = tmp_path_factory.mktemp("source")
    for name in PROJECT_FILES:
        shutil.copy(repository / name, folder / name)
    for name in PACKAGES:
        shutil.copytree(repository / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source), cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the Python of an environment that holds only uumamba.

    Dependencies are available through a path entry.
    """
    folder = tmp_path_factory.mktemp(request.param)
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder)
    python = folder / "bin" / "python"
    site = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    lenders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "borrowed.pth").write_text("\n".join(lenders))
    what = [str(request.getfixturevalue("wheel"))] if request.param == "wheel" else ["--editable", str(source)]
    pip = (sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-build-isolation")
    run(*pip, "--ignore-installed", *what, cwd=folder)
    return python


@pytest.mark.slow
def test_the_wheel_carries_every_file_of_the_packages(source: Path, wheel: Path) -> None:
    carried = set(zipfile.ZipFile(wheel).namelist())
    files = {file.relative_to(source).as_posix() for name in PACKAGES for file in (source / name).rglob("*.*")}
    expected = {f"uumamba/{name}" if name.startswith("configs/") else name for name in files}
    expected = {name for name in expected if "egg-info" not in name and "/." not in name}
    assert expected - carried == set()
    assert {name.partition("/")[0] for name in carried if ".dist-info" not in name} == {"uumamba", "data_prep"}


@pytest.mark.slow
def test_the_wheel_names_the_licences_of_code_and_weights(wheel: Path) -> None:
    carried = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in carried.namelist() if name.endswith(".dist-info/METADATA")]
    lines = carried.read(metadata).decode().splitlines()
    assert "License-Expression: Apache-2.0 AND CC-BY-NC-SA-4.0" in lines
    files = {line.removeprefix("License-File: ") for line in lines if line.startswith("License-File: ")}
    assert files == {"LICENSE", "uumamba/models/acdc/LICENSE"}


@pytest.mark.slow
def test_without_a_compiler_the_wheel_is_built_and_lacks_the_native_scan_alone(source: Path, tmp_path: Path) -> None:
    bare = tmp_path / "source"
    built_before = shutil.ignore_patterns("*.so", "build", "*.egg-info")
    shutil.copytree(source, bare, ignore=built_before)
    none = {**os.environ, "CC": "no-compiler", "CXX": "no-compiler", "LDSHARED": "no-compiler", "LDCXXSHARED": ""}
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(bare)]
    done = subprocess.run(command, cwd=tmp_path, env=none, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    carried = zipfile.ZipFile(wheel).namelist()
    assert "uumamba/ops/selective_scan.py" in carried
    assert not [name for name in carried if name.endswith(".so")]


@pytest.mark.slow
def test_an_install_has_both_packages_the_configs_and_a_command_without_torch(
    installed: Path, source: Path, repository: Path, tmp_path: Path
) -> None:
    code = """
import json, sys
import data_prep, uumamba, uumamba.cli
from importlib.resources import files
names = sorted(file.name for file in files("uumamba.configs").iterdir() if file.name.endswith(".yaml"))
print(json.dumps([uumamba.__file__, data_prep.__file__, names, "torch" in sys.modules]))
"""
    *packages, shipped, loads_torch = json.loads(run(str(installed), "-c", code, cwd=tmp_path))
    for file in map(Path, packages):
        assert not file.is_relative_to(repository)
        assert file.is_relative_to(installed.parents[1]) or file.is_relative_to(source)
    assert shipped == sorted(file.name for file in (repository / "configs").glob("*.yaml"))
    assert "demo.yaml" in shipped
    assert not loads_torch
    helped = run(str(installed.with_name("uumamba")), "--help", cwd=tmp_path)
    assert all(verb in helped for verb in ("run", "prepare", "train", "predict", "evaluate", "report", "demo"))


def run(*command: str, cwd: Path) -> str:
    """Run a command that must succeed; return its output."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
