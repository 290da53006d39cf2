"""The shipped configurations, one YAML a full run; installed as ``uumamba.configs``."""
