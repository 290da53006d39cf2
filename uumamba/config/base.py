"""Base of every configuration: typed, frozen, unknown keys rejected."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Section of a run's YAML.

    A subclass adds fields and a ``build()``, which passes them as plain arguments to the constructor.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)
