"""The package gives its readers when they are asked for, and costs nothing before."""

import subprocess
import sys

import pytest

import data_prep


def test_every_public_name_is_there_and_no_other():
    assert all(callable(getattr(data_prep, name)) for name in data_prep.__all__)
    with pytest.raises(AttributeError, match="module 'data_prep' has no attribute 'read_nothing'"):
        data_prep.read_nothing  # noqa: B018  # asking is the test


def test_its_modules_are_there_without_an_import_of_their_own_and_listed_with_the_names():
    code = "import data_prep; print(data_prep.mnms.__name__, data_prep.phantom.write_phantom.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "data_prep.mnms write_phantom\n"
    assert set(data_prep.__all__) | {"mnms", "folds"} <= set(dir(data_prep))


def test_the_package_alone_loads_none_of_its_modules():
    code = "import sys, data_prep; print([name for name in sys.modules if name.startswith('data_prep.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout == "[]\n"
