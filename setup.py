"""Package discovery that pyproject.toml cannot state: two packages, and ``configs/`` as ``uumamba.configs``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["uumamba", "uumamba.*", "data_prep", "data_prep.*"]), "uumamba.configs"],
    package_dir={"uumamba.configs": "configs"},
)
