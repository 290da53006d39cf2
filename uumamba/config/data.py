"""Data set and preparation."""

from typing import Any, Literal

from pydantic import PositiveFloat

from uumamba.config.base import Config


class DatasetConfig(Config):
    """Which public layout the raw folder has; ``imagecas`` is its Split-1."""

    name: Literal["acdc", "phantom", "imagecas", "imagecas_split2", "imagecas_split3", "imagecas_split4", "aorta"]


class PreprocessConfig(Config):
    """How a scan becomes a prepared array; see :class:`uumamba.data.PreprocessRecipe`."""

    spacing_mm: tuple[PositiveFloat | None, PositiveFloat | None, PositiveFloat | None]
    normalisation: Literal["zscore"] = "zscore"
    clip_percentiles: tuple[float, float] = (0.5, 99.5)

    def build(self) -> Any:
        """The recipe."""
        from uumamba.data.preprocess import PreprocessRecipe

        return PreprocessRecipe(**self.model_dump())
