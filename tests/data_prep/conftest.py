"""Real ACDC where it is, and one phantom that the tests of this folder share."""

from pathlib import Path

import pytest

from data_prep import write_phantom

REAL_ACDC = Path(__file__).resolve().parents[3] / "shared" / "data" / "acdc"


@pytest.fixture(scope="session")
def real_acdc() -> Path:
    """The folder that holds the training patients of the real ACDC."""
    if not (REAL_ACDC / "training").is_dir():
        pytest.skip(f"real data: no ACDC patients at {REAL_ACDC}")
    return REAL_ACDC


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty phantom patients, four of each diagnosis, and one test patient."""
    return write_phantom(tmp_path_factory.mktemp("phantom"), patients=20, test_patients=1)
