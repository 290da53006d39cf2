"""Fixtures: an uninterrupted tiny run, and runs without plots."""

from pathlib import Path

import pytest

from tests.training.tiny_run import build_trainer


@pytest.fixture(autouse=True)
def _no_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw only for tests that use the fixture ``plots`` (drawing is slow)."""
    if "plots" not in request.fixturenames:
        monkeypatch.setattr("uumamba.training.trainer.draw_progress", lambda rows, path: None)


@pytest.fixture
def plots() -> None:
    """Let runs draw ``progress.png``."""


@pytest.fixture(scope="session")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unstopped")
    build_trainer(folder).fit()
    return folder
