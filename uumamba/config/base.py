"""The one base of every configuration: typed, frozen, complete, unknown keys refused."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A part of a run's YAML. Subclasses add fields and a short ``build()`` that passes plain arguments on."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)
