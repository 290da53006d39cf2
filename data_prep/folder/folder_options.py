"""Options that say how a folder of scans is read."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.options import NonNegativeInt, PositiveInt, check_options

Layout = Literal["auto", "nnunet", "decathlon", "datalist", "pairs", "csv", "manifest"]
KEY = "dataset"
"""Section of a configuration with these options; errors have its name."""


@check_options
@dataclass(frozen=True, kw_only=True)
class FolderOptions:
    r"""Layout of a folder, and what its files do not say.

    Args:
        layout: ``auto`` recognises the layout by the folder's files.
        images: for ``pairs``, a glob within the folder, or one for each channel by name.
        labels: for ``pairs``, the glob of the label maps.
        case_list: for ``csv`` and ``datalist``, the file within the folder; None takes the only one.
        structures: label value of each structure; None takes those of the layout's file, or else names every value in
            the label maps ``label_1`` and so on.
        ignore_value: label value of voxels that are not scored; None takes that of the layout's file.
        regions: label values of each region; None takes those of the layout's file.
        regions_class_order: label value that each region paints; None takes that of the layout's file.
        colours: colour of a structure or region in the report, such as ``#d62728``.
        patient: regular expression with one group, which is searched in each case id and finds the patient; None takes
            the patients of the layout's file, or else each case for a patient.

    Raises:
        UsageError: an option does not belong to the layout, or ``patient`` is no expression with one group.

    Example:
        >>> FolderOptions(images="images/*.nii.gz", labels="labels/*.nii.gz", patient=r"(\w+)_visit\d").layout
        'pairs'
        >>> FolderOptions(layout="pairs", images="*.nii.gz")
        Traceback (most recent call last):
        uumamba.runtime.errors.UsageError: dataset.labels: got None, expected a glob, as dataset.images is given.
    """

    layout: Layout = "auto"
    images: str | Mapping[str, str] | None = None
    labels: str | None = None
    case_list: str | None = None
    structures: Mapping[str, PositiveInt] | None = None
    ignore_value: PositiveInt | None = None
    regions: Mapping[str, tuple[NonNegativeInt, ...]] | None = None
    regions_class_order: tuple[PositiveInt, ...] | None = None
    colours: Mapping[str, str] | None = None
    patient: str | None = None

    def __post_init__(self) -> None:
        given = {key for key in ("images", "labels") if getattr(self, key) is not None}
        if self.layout == "auto" and given:
            object.__setattr__(self, "layout", "pairs")
        for key in ("images", "labels"):
            if self.layout == "pairs" or given:
                other = "labels" if key == "images" else "images"
                why = f"as {KEY}.{other} is given" if other in given else f"as {KEY}.layout is pairs"
                require(key in given, f"{KEY}.{key}", got=None, expected=f"a glob, {why}")
            if self.layout != "pairs":
                self._require_none(key)
        if self.layout not in ("auto", "csv", "datalist"):
            self._require_none("case_list")
        if self.patient is not None:
            _check_pattern(self.patient)

    def _require_none(self, key: str) -> None:
        expected = f"no value with the layout {self.layout}"
        require(getattr(self, key) is None, f"{KEY}.{key}", got=getattr(self, key), expected=expected)

    def labels_given(self) -> dict[str, Any]:
        """Return the fields of a manifest that are given here."""
        fields = {"structures", "ignore_value", "regions", "regions_class_order", "colours"}
        return {key: value for key in sorted(fields) if (value := getattr(self, key)) is not None}


def _check_pattern(pattern: str) -> None:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        expected = "a regular expression"
        raise UsageError(f"{KEY}.patient", got=f"{pattern} ({error})", expected=expected) from None
    expected = r"one group, such as (patient\d+)_.*"
    require(groups == 1, f"{KEY}.patient", got=f"{pattern} with {groups} groups", expected=expected)
