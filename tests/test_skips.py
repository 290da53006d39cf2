"""Tests of the allowed reasons for skipped tests.

They are a missing accelerator, browser or real data.
"""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ALLOWED = """
import pytest

def test_one():
    pytest.skip("accelerator: none")

def test_two():
    pytest.skip("real data: absent")
"""
FORBIDDEN = """
@pytest.mark.skip(reason="does not work yet")
def test_three():
    pass
"""


@pytest.mark.parametrize(
    ("tests", "code", "line"),
    [(ALLOWED, 0, "skips: 2"), (ALLOWED + FORBIDDEN, 1, "  1 x does not work yet [[]NOT ALLOWED*")],
    ids=["allowed", "another reason"],
)
def test_a_run_counts_its_skips_and_fails_for_another_reason(
    pytester: pytest.Pytester, repository: Path, tests: str, code: int, line: str
) -> None:
    pytester.makeconftest((repository / "tests" / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(tests)
    done = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    assert done.ret == code
    done.stdout.fnmatch_lines([line])
    done.stdout.fnmatch_lines(["  1 x accelerator: none", "  1 x real data: absent"])
