"""Recipe of preprocessing: spacing, normalisation and CT statistics."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter

from uumamba.runtime.errors import require
from uumamba.runtime.options import Positive, check_options


@check_options
@dataclass(frozen=True)
class CtStatistics:
    """Statistics of a data set's foreground in Hounsfield units.

    They define a normalisation that is the same for every scan.

    Args:
        low_hu: lower limit.
        high_hu: upper limit.
        mean_hu: mean between the limits.
        std_hu: standard deviation between the limits.

    Raises:
        UsageError: the lower limit is not below the upper one, or the standard deviation is not positive.
    """

    low_hu: float
    high_hu: float
    mean_hu: float
    std_hu: float

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        require(
            self.low_hu < self.high_hu and self.std_hu > 0,
            "ct_statistics",
            got=self,
            expected="low_hu below high_hu, and a positive std_hu",
        )


@check_options
@dataclass(frozen=True)
class PreprocessRecipe:
    """Spacing and normalisation of prepared arrays.

    Equal recipes give equal arrays.

    Args:
        spacing_mm: spacing of the through-plane axis and of the two axes in plane; None keeps the scan's spacing.
        normalisation: ``"zscore"`` clips each scan to its own percentiles and normalises it to mean 0 and variance 1;
            ``"ct"`` clips Hounsfield units to ``ct_statistics``, subtracts their mean and divides by their standard
            deviation, the same for every scan.
        clip_percentiles: lower and upper percentile; of the crop for ``"zscore"``, of the training cases' foreground
            for the ``ct_statistics`` of ``"ct"``.
        ct_statistics: statistics for ``"ct"``; None lets :func:`uumamba.pipelines.prepare.prepare` compute them from
            the training cases.

    Raises:
        UsageError: a spacing is not positive, the percentiles are not ascending, or statistics of CT are given for
            another normalisation.

    Example:
        >>> PreprocessRecipe(spacing_mm=(None, 1.5, 1.5)).normalisation
        'zscore'
    """

    spacing_mm: tuple[Positive | None, Positive | None, Positive | None]
    normalisation: Literal["zscore", "ct"] = "zscore"
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    ct_statistics: CtStatistics | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        low, high = self.clip_percentiles
        require(
            0 <= low < high <= 100,
            "clip_percentiles",
            got=self.clip_percentiles,
            expected="two ascending numbers from 0 to 100",
        )
        require(
            self.normalisation == "ct" or self.ct_statistics is None,
            "ct_statistics",
            got=self.ct_statistics,
            expected="None unless normalisation is 'ct'",
        )

    @property
    def is_complete(self) -> bool:
        """Return whether the recipe can preprocess scans: no statistics are missing."""
        return self.normalisation != "ct" or self.ct_statistics is not None

    def completes(self, wanted: "PreprocessRecipe") -> bool:
        """Return whether this is the wanted recipe, possibly with added statistics.

        Example:
            >>> wanted = PreprocessRecipe((None, None, None), normalisation="ct")
            >>> replace(wanted, ct_statistics=CtStatistics(-100, 300, 50, 25)).completes(wanted)
            True
        """
        return wanted in (self, replace(self, ct_statistics=None))

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "PreprocessRecipe":
        """Read the values of :meth:`to_json`.

        Missing keys get their defaults.

        Raises:
            ValueError: a key is unknown, or a value has another type.
        """
        return TypeAdapter(cls).validate_python(stored)
