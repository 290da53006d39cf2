"""Data set and preparation."""

from typing import Any, Literal

from pydantic import PositiveFloat

from uumamba.config.base import Config


class DatasetConfig(Config):
    """Which public layout the raw folder has; ``imagecas`` is its Split-1."""

    name: Literal[
        "acdc", "phantom", "imagecas", "imagecas_split2", "imagecas_split3", "imagecas_split4", "aorta", "mnms"
    ]


class CtStatisticsConfig(Config):
    """Hounsfield units of a data set's foreground; see :class:`uumamba.data.CtStatistics`."""

    low_hu: float
    high_hu: float
    mean_hu: float
    std_hu: float

    def build(self) -> Any:
        """The statistics."""
        from uumamba.data.hounsfield import CtStatistics

        return CtStatistics(**self.model_dump())


class PreprocessConfig(Config):
    """How a scan becomes a prepared array; see :class:`uumamba.data.PreprocessRecipe`.

    For ``ct`` the statistics may be left out: ``uumamba prepare`` finds them in the foreground of the training cases,
    those of every fold, as nnU-Net does, with ``clip_percentiles`` as the limits, and stores them in ``recipe.json``.
    """

    spacing_mm: tuple[PositiveFloat | None, PositiveFloat | None, PositiveFloat | None]
    normalisation: Literal["zscore", "ct"] = "zscore"
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    ct_statistics: CtStatisticsConfig | None = None

    def build(self) -> Any:
        """The recipe; without its statistics where they are left to be found."""
        from uumamba.data.preprocess import PreprocessRecipe

        statistics = None if self.ct_statistics is None else self.ct_statistics.build()
        recipe = PreprocessRecipe(**{**self.model_dump(), "ct_statistics": statistics})
        if statistics is not None and self.clip_percentiles != type(self).model_fields["clip_percentiles"].default:
            raise ValueError(
                f"ct_statistics give the limits, so clip_percentiles {self.clip_percentiles} would change nothing; "
                "leave one of them out"
            )
        return recipe
