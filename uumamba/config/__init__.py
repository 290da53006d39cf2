"""YAML or a checkpoint's stored configuration, validated, to objects by ``build()``."""

from uumamba.config.load import read_config, shipped_configs
from uumamba.config.run import RunConfig

__all__ = ["RunConfig", "read_config", "shipped_configs"]
