"""Base of sections without a single constructor: typed, frozen, unknown keys rejected."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from uumamba.config.bind import check_keys
from uumamba.runtime.errors import require
from uumamba.runtime.options import is_data, read_value


class Config(BaseModel):
    """Section of a run's YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _read_values(cls, given: Any) -> Any:
        """Read keys and values by the rules of a part's options."""
        if isinstance(given, cls):
            return given
        require(isinstance(given, Mapping), "", got=given, expected="a mapping of options")
        fields = {field.alias or name: field for name, field in cls.model_fields.items()}
        check_keys(given, fields, required=[key for key, field in fields.items() if field.is_required()])
        annotations = {key: field.rebuild_annotation() for key, field in fields.items()}
        return {
            key: read_value(annotations[key], value, key, from_yaml=True) if is_data(annotations[key]) else value
            for key, value in given.items()
        }
