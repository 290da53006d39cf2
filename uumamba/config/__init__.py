"""Configurations: from YAML or a checkpoint to validated values, and by ``build()`` to objects."""

from uumamba.config.load import read_config, shipped_configs
from uumamba.config.run_config import RunConfig

__all__ = ["RunConfig", "read_config", "shipped_configs"]
