"""Lazy import of the package's public functions."""

import subprocess
import sys

import pytest

import data_prep


def test_every_public_name_exists_and_importing_the_package_loads_none_of_its_modules():
    assert all(callable(getattr(data_prep, name)) for name in data_prep.__all__)
    assert set(data_prep.__all__) <= set(dir(data_prep))
    with pytest.raises(AttributeError, match="read_nothing"):
        data_prep.read_nothing  # noqa: B018  # asking is the test
    code = "import sys, data_prep; print([name for name in sys.modules if name.startswith('data_prep.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "[]\n"
