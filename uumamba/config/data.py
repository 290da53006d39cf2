"""Data set and preparation."""

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveFloat, model_serializer, model_validator

from uumamba.config.base import Config


def _different(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names or len(set(names)) < len(names) or not all(names):
        raise ValueError("name one or more domains, each once")
    return names


Names = Annotated[tuple[str, ...], AfterValidator(_different)]


class DomainsConfig(Config):
    """Which domains (vendors, centres) a run trains on, and which it is validated on.

    ``{train: [A], validate: [B]}``; one of the two alone leaves the other domains to the other side, and
    ``{leave_out: B}`` is ``{validate: [B]}``. A domain on one side stands there with all its training cases, whatever
    their fold; one on both sides is divided by the fold, as without this key. Test cases are on neither.

    A domain that is validated on and not trained on is seen in the curve and chooses ``best.safetensors``;
    ``last.safetensors``, which is what a run predicts with, never learns of it. Preparing finds the statistics of CT in
    all training cases, those of a left out domain among them.
    """

    train: Names | None = None
    validated: Names | None = Field(None, alias="validate")  # pydantic's models have a method of the key's name
    leave_out: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _say_one_thing(self) -> "DomainsConfig":
        sides = self.train is not None or self.validated is not None
        if sides == (self.leave_out is not None):
            raise ValueError("give train, validate or both of them, or leave_out alone; without domains, leave it null")
        return self

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {"train": self.train, "validate": self.validated, "leave_out": self.leave_out}

    def named(self) -> set[str]:
        """Every domain that is named."""
        return {*(self.train or ()), *(self.validated or ()), *filter(None, [self.leave_out])}

    def sides(self, known: Collection[str]) -> tuple[set[str], set[str]]:
        """The domains to train on and those to validate on, of the known ones.

        Example:
            >>> trained, validated = DomainsConfig(leave_out="B").sides({"A", "B", "C"})
            >>> sorted(trained), sorted(validated)
            (['A', 'C'], ['B'])
        """
        validated = self.validated if self.leave_out is None else (self.leave_out,)
        if self.train is None:
            return {*known}.difference(validated or ()), {*known}.intersection(validated or ())
        others = {*known}.difference(self.train)
        return {*known}.intersection(self.train), others if validated is None else {*known}.intersection(validated)


class DatasetConfig(Config):
    """Which public layout the raw folder has, and which of its domains are trained and validated on.

    ``imagecas`` is its Split-1. Without ``domains`` every case is trained or validated on, by its fold.
    """

    name: Literal[
        "acdc", "phantom", "imagecas", "imagecas_split2", "imagecas_split3", "imagecas_split4", "aorta", "mnms"
    ]
    domains: DomainsConfig | None = None


class CtStatisticsConfig(Config):
    """Hounsfield units of a data set's foreground; see :class:`uumamba.data.CtStatistics`."""

    low_hu: float
    high_hu: float
    mean_hu: float
    std_hu: float

    def build(self) -> Any:
        """The statistics."""
        from uumamba.data.recipe import CtStatistics

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
