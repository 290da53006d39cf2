"""The package gives its readers when they are asked for, and costs nothing before."""

import subprocess
import sys

import pytest

import data_prep


def test_every_public_name_is_there_and_the_package_alone_loads_none_of_its_modules():
    assert all(callable(getattr(data_prep, name)) for name in data_prep.__all__)
    assert set(data_prep.__all__) <= set(dir(data_prep))
    with pytest.raises(AttributeError, match="read_nothing"):
        data_prep.read_nothing  # noqa: B018  # asking is the test
    code = "import sys, data_prep; print([name for name in sys.modules if name.startswith('data_prep.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "[]\n"
