"""Recipe of preprocessing: spacing, normalisation and CT statistics."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter

from uumamba.runtime.errors import require
from uumamba.runtime.options import Positive, check_options

Normalisation = Literal["zscore", "ct", "none"]
_BY_NAME: Mapping[str, Normalisation] = {"ct": "ct", "nonorm": "none", "none": "none"}


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
            deviation, the same for every scan; ``"none"`` keeps the values. One word for all channels, or one for each.
        clip_percentiles: lower and upper percentile; of the crop for ``"zscore"``, of the training cases' foreground
            for the ``ct_statistics`` of ``"ct"``.
        ct_statistics: statistics for ``"ct"``, of all channels or one for each (None for a channel of another
            normalisation); None lets :func:`uumamba.pipelines.prepare.prepare` compute them from the training cases.

    Raises:
        UsageError: a spacing is not positive, the percentiles are not ascending, or statistics of CT are given for
            another normalisation.

    Example:
        >>> PreprocessRecipe(spacing_mm=(None, 1.5, 1.5)).normalisation
        'zscore'
    """

    spacing_mm: tuple[Positive | None, Positive | None, Positive | None]
    normalisation: Normalisation | tuple[Normalisation, ...] = "zscore"
    clip_percentiles: tuple[float, float] = (0.5, 99.5)
    ct_statistics: CtStatistics | tuple[CtStatistics | None, ...] | None = None

    __pydantic_config__ = ConfigDict(extra="forbid")

    def __post_init__(self) -> None:
        low, high = self.clip_percentiles
        require(
            0 <= low < high <= 100,
            "clip_percentiles",
            got=self.clip_percentiles,
            expected="two ascending numbers from 0 to 100",
        )
        words, statistics = self.normalisation, self.ct_statistics
        several = isinstance(words, tuple) or isinstance(statistics, tuple)
        each = self.split() if several else (self,)
        require(
            all(one.normalisation == "ct" or one.ct_statistics is None for one in each)
            and (statistics is None or "ct" in (words if isinstance(words, tuple) else (words,))),
            "ct_statistics",
            got=statistics,
            expected="None unless normalisation is 'ct'",
        )

    @property
    def is_complete(self) -> bool:
        """Return whether the recipe can preprocess scans: no statistics are missing."""
        return all(one.normalisation != "ct" or one.ct_statistics is not None for one in self.split())

    @property
    def modality(self) -> str:
        """Return CT or MR, as the normalisation is for; empty without one.

        Example:
            >>> PreprocessRecipe((None, None, None), normalisation="zscore").modality
            'MR'
        """
        words = (self.normalisation,) if isinstance(self.normalisation, str) else self.normalisation
        return "CT" if "ct" in words else "MR" if "zscore" in words else ""

    def split(self, channels: int | None = None) -> tuple["PreprocessRecipe", ...]:
        """Return the recipe of each channel.

        Args:
            channels: number of channels; None takes the recipe's, 1 if it is the same for all.

        Raises:
            UsageError: the recipe lists another number of channels.

        Example:
            >>> recipe = PreprocessRecipe((None, None, None), normalisation=("zscore", "none"))
            >>> [one.normalisation for one in recipe.split(2)]
            ['zscore', 'none']
        """
        words, statistics = self.normalisation, self.ct_statistics
        listed = [len(each) for each in (words, statistics) if isinstance(each, tuple)]
        count = channels or max(listed, default=1)
        require(
            all(length == count for length in listed),
            "normalisation",
            got=words if isinstance(words, tuple) else statistics,
            expected=f"one word, or one for each of the {count} channels",
        )
        of_all = statistics if isinstance(statistics, CtStatistics) else None
        return tuple(
            replace(
                self,
                normalisation=word,
                ct_statistics=given if given is not None or word != "ct" else of_all,
            )
            for word, given in zip(
                words if isinstance(words, tuple) else (words,) * count,
                statistics if isinstance(statistics, tuple) else (None,) * count,
                strict=True,
            )
        )

    def completes(self, wanted: "PreprocessRecipe") -> bool:
        """Return whether this is the wanted recipe, possibly with added statistics.

        Example:
            >>> wanted = PreprocessRecipe((None, None, None), normalisation="ct")
            >>> replace(wanted, ct_statistics=CtStatistics(-100, 300, 50, 25)).completes(wanted)
            True
        """
        return wanted in (self, replace(self, ct_statistics=None))

    def with_statistics(self, found: Sequence[CtStatistics | None]) -> "PreprocessRecipe":
        """Add each channel's statistics, None without CT."""
        return replace(self, ct_statistics=found[0] if len(found) == 1 else tuple(found))

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as JSON values: lists in place of tuples."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "PreprocessRecipe":
        """Read the values of :meth:`to_json`.

        Missing keys get their defaults.

        Raises:
            ValueError: a key is unknown, or a value has another type.
        """
        return TypeAdapter(cls).validate_python(stored)


def choose_normalisation(channels: Sequence[str]) -> Normalisation | tuple[Normalisation, ...]:
    """Choose each channel's normalisation by its name, as nnU-Net does.

    A channel ``CT`` is normalised as CT, ``noNorm`` or ``none`` keeps its values, all others are z-scored; capitals do
    not matter. Equal words become one word.

    Example:
        >>> choose_normalisation(["CT", "PET"]), choose_normalisation(["T1", "FLAIR"])
        (('ct', 'zscore'), 'zscore')
    """
    words = tuple(_BY_NAME.get(name.casefold(), "zscore") for name in channels)
    return words[0] if len({*words}) == 1 else words
