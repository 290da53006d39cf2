"""A skip may not hide a broken test: only an accelerator, a browser or real data may be missing."""

import subprocess
import sys
from pathlib import Path

ALLOWED = """
import pytest

def test_one():
    pytest.skip("accelerator: none")

def test_two():
    pytest.skip("real data: absent")
"""
FORBIDDEN = """
import pytest

@pytest.mark.skip(reason="does not work yet")
def test_three():
    pass
"""


def test_a_run_counts_its_skips_and_passes_when_all_are_allowed(repository: Path, tmp_path: Path) -> None:
    done = _run_pytest(repository, tmp_path, ALLOWED)
    assert done.returncode == 0, done.stdout
    assert "skips: 2\n  1 x accelerator: none\n  1 x real data: absent" in done.stdout


def test_a_run_fails_when_a_test_is_skipped_for_any_other_reason(repository: Path, tmp_path: Path) -> None:
    done = _run_pytest(repository, tmp_path, ALLOWED + FORBIDDEN)
    assert done.returncode == 1, done.stdout
    assert "1 x does not work yet [NOT ALLOWED" in done.stdout


def _run_pytest(repository: Path, folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text((repository / "tests" / "conftest.py").read_text(encoding="utf-8"))
    (folder / "test_planted.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--rootdir={folder}", str(folder)]
    return subprocess.run(command, cwd=repository, capture_output=True, encoding="utf-8")
