"""Configuration and fixtures of all tests.

Seeds are fixed, hypothesis is derandomised, and only some reasons for skips are allowed.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import torch
from hypothesis import settings

from uumamba.ops import native_library
from uumamba.runtime.errors import CaseError, UsageError
from uumamba.runtime.seeds import seed_everything

os.environ.setdefault("MPLBACKEND", "Agg")
settings.register_profile("uumamba", derandomize=True, deadline=None, print_blob=False)
settings.load_profile("uumamba")

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "data"
ALLOWED_SKIPS = ("accelerator", "browser", "real data")


def pytest_addoption(parser: pytest.Parser) -> None:
    names = native_library._INSTRUCTION_SETS
    parser.addoption("--instruction-set", choices=names, help="best instruction set that the native scan may use")


def pytest_configure(config: pytest.Config) -> None:
    """Hide newer instruction sets, as on a processor without them.

    The library itself has no such setting.
    """
    names, best = native_library._INSTRUCTION_SETS, config.getoption("--instruction-set")
    if best is not None:
        native_library._INSTRUCTION_SETS = names[: names.index(best) + 1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real scans; skip the test without one."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"real data: {REAL_DATA} is absent")
    return REAL_DATA


@pytest.fixture(scope="session")
def find_real(real_data: Path) -> Callable[[str], Path]:
    """Return a function that finds a folder of real scans, or skips the test."""

    def find(name: str) -> Path:
        folder = real_data / name
        if not folder.is_dir():
            pytest.skip(f"real data: {folder} is absent")
        return folder

    return find


@pytest.fixture(scope="session")
def acdc_raw(find_real: Callable[[str], Path]) -> Path:
    """Return the 100 public training patients of ACDC, in ACDC's own layout."""
    return find_real("acdc")


@contextmanager
def _refused(key: str, got: Any = ANY, *, case_id: Any = ANY) -> Iterator[pytest.ExceptionInfo[UsageError | CaseError]]:
    with pytest.raises((UsageError, CaseError)) as error:
        yield error
    assert (error.value.key, error.value.got) == (key, got), error.value
    assert getattr(error.value, "case_id", None) == case_id


@pytest.fixture(scope="session")
def refused() -> Callable[..., AbstractContextManager[pytest.ExceptionInfo[UsageError | CaseError]]]:
    """Assert that a block raises a UsageError or CaseError with this key.

    Value and case are compared if given. The text may change: ``with refused("rho", got=-1): SAM(params, base,
    rho=-1)``.
    """
    return _refused


@pytest.fixture(autouse=True)
def _same_seeds_for_every_test() -> None:
    seed_everything(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="accelerator: this machine has none"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = Counter(_skip_reasons(terminalreporter))
    terminalreporter.write_line(f"skips: {sum(reasons.values())}")
    for reason, count in sorted(reasons.items()):
        verdict = "" if _allowed(reason) else f" [NOT ALLOWED: name one of {', '.join(ALLOWED_SKIPS)}]"
        terminalreporter.write_line(f"  {count} x {reason}{verdict}")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session if a test was skipped for another reason."""
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    if reporter and not all(map(_allowed, _skip_reasons(reporter))):
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def _skip_reasons(reporter: pytest.TerminalReporter) -> Iterator[str]:
    for report in reporter.stats.get("skipped", []):
        yield str(report.longrepr[2]).removeprefix("Skipped: ")


def _allowed(reason: str) -> bool:
    return any(word in reason for word in ALLOWED_SKIPS)
