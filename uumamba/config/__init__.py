"""Validated configurations of a run, and the objects that they build."""

from uumamba.config.load import read_config, shipped_configs
from uumamba.config.run_config import RunConfig

__all__ = ["RunConfig", "read_config", "shipped_configs"]


def __dir__() -> list[str]:
    return __all__
