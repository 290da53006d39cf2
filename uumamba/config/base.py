"""Base of sections without a single constructor: typed, frozen, unknown keys rejected."""

from collections.abc import Mapping
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, model_validator

from uumamba.config.bind import mentions_bool, refuse_bool
from uumamba.runtime.options import describe, is_data


class Config(BaseModel):
    """Section of a run's YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_bools(cls, given: Any) -> Any:
        """Raise for True and False in place of a number."""
        for name, field in cls.model_fields.items():
            key, annotation = field.alias or name, cast(Any, field.annotation)
            is_given = isinstance(given, Mapping) and key in given
            if is_given and is_data(annotation) and not mentions_bool(annotation):
                refuse_bool(given[key], key, describe(annotation))
        return given
