"""One small folder of each phantom, shared by all tests."""

from pathlib import Path

import pytest

from data_prep import write_phantom
from data_prep.phantoms.aorta.aorta_phantom import write_aorta_phantom
from data_prep.phantoms.coronary.coronary_phantom import write_coronary_phantom
from data_prep.phantoms.phantom_folder import Order


@pytest.fixture
def orders(monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """Record the ordered cases instead of writing them."""
    recorded: list[Order] = []
    for name in ("coronary", "aorta"):
        monkeypatch.setattr(f"data_prep.phantoms.{name}.{name}_phantom._write_case", recorded.append)
    return recorded


@pytest.fixture(scope="session")
def heart_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients, two of each diagnosis, and one test patient."""
    return write_phantom(tmp_path_factory.mktemp("heart"), patients=10, test_patients=1)


@pytest.fixture(scope="session")
def coronary_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four cases and one test case."""
    return write_coronary_phantom(tmp_path_factory.mktemp("coronary"), cases=4, test_cases=1)


@pytest.fixture(scope="session")
def aorta_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two subjects."""
    return write_aorta_phantom(tmp_path_factory.mktemp("aorta"), cases=2)
