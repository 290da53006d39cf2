"""Channel of a scan: content and normalisation by its own recipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uumamba.data.chunks import spans
from uumamba.data.grid import Image
from uumamba.data.normalise import (
    DENSE_HU,
    Normaliser,
    find_shift,
    make_ct_normaliser,
    make_scan_normaliser,
    to_float32,
)
from uumamba.data.recipe import CtStatistics, PreprocessRecipe
from uumamba.runtime.errors import CaseError, require_case


class Channel:
    """Oriented channel with the recipe of its normalisation.

    Args:
        image: ``(Z, Y, X)``.
        recipe: recipe of this channel only.
        case_id: name of the case in errors.
        number: number of the channel in errors; None for the only one.

    Raises:
        CaseError: a CT channel is constant.
    """

    def __init__(self, image: NDArray[Any], recipe: PreprocessRecipe, *, case_id: str, number: int | None) -> None:
        self.image, self.recipe, self.case_id, self.number = image, recipe, case_id, number
        statistics = recipe.ct_statistics
        self._statistics = statistics if isinstance(statistics, CtStatistics) else None
        self._name = case_id if number is None else f"{case_id}, channel {number}"
        with self._naming():
            self._shift = 0 if self._statistics is None else find_shift(image, case_id=self._name)

    def crop(self, crop: tuple[slice, slice, slice]) -> Callable[[int, int], Image]:
        """Return a function ``read(first, last)`` of normalised planes in a crop.

        Raises:
            CaseError: the percentiles of a z-scored channel are equal.
        """
        image = self.image[crop]
        with self._naming():
            normalise = self._make_normaliser(image)
        return lambda first, last: normalise(image[first:last])

    def mark_content(self, filled: list[NDArray[np.bool_]]) -> None:
        """Mark the positions with content, per axis.

        Content of CT is denser than lung; other content is not 0. One of several channels may be empty if its values
        are kept, such as a mask.

        Raises:
            CaseError: the channel holds NaN or infinity, or has no content.
        """
        denser_than = None if self._statistics is None else DENSE_HU - self._shift
        own = [np.zeros_like(each) for each in filled]
        with self._naming():
            for first, last in spans(len(self.image), self.image[0].size):
                planes = self.image[first:last]
                require_case(
                    planes.dtype.kind != "f" or np.isfinite(planes).all(),
                    self._name,
                    "image",
                    got="NaN or infinity",
                    expected="finite voxels",
                    fix="repair or exclude the scan",
                )
                mark(own, planes != 0 if denser_than is None else planes > denser_than, first, last)
            require_case(
                own[0].any() or (self.number is not None and self.recipe.normalisation == "none"),
                self._name,
                "image",
                got="0 everywhere" if denser_than is None else "only air",
                expected="an image with content",
                fix="restore or exclude the scan",
            )
        for each, more in zip(filled, own, strict=True):
            each |= more

    def _make_normaliser(self, image: NDArray[Any]) -> Normaliser:
        if self.recipe.normalisation == "none":
            return to_float32
        if self._statistics is not None:
            return make_ct_normaliser(self._statistics, shift=self._shift)
        return make_scan_normaliser(image, self.recipe.clip_percentiles, case_id=self._name)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the channel in an error's key, not in its case."""
        try:
            yield
        except CaseError as error:
            if self.number is None:
                raise
            raise CaseError(
                self.case_id, f"channel {self.number}", got=error.got, expected=error.expected, fix=error.fix
            ) from None


def mark(filled: list[NDArray[np.bool_]], content: NDArray[np.bool_], first: int, last: int) -> None:
    """Mark the positions with content in planes ``[first, last)``, per axis."""
    filled[0][first:last] |= content.any(axis=(1, 2))
    shadow: NDArray[np.bool_] = np.any(content, axis=0)
    filled[1] |= shadow.any(axis=1)
    filled[2] |= shadow.any(axis=0)
