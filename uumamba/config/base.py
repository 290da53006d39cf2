"""Base of every configuration: typed, frozen, unknown keys rejected."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Section of a run's YAML; subclasses add fields and a ``build()`` that passes them on as plain arguments."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)
