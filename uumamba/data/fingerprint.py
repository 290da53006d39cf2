"""Fingerprint of training data: ranges, to name inputs outside them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from uumamba.data.case_figures import HALF_MM, CaseFigures, measure_prepared
from uumamba.data.orientation_template import OrientationTemplate
from uumamba.data.prepared import PreparedFolder

FEWEST_CASES, MOST_CASES = 20, 200
Range = tuple[float, float]


@dataclass(frozen=True)
class Fingerprint:
    """Ranges of the training cases' figures.

    An input outside a range is predicted all the same, but its result deserves a look. Ranges are wider than those of
    the training cases: lengths by a factor of 1.25 and volumes by 1.5 on either side, intensities by half of the
    range's width.

    Attributes:
        lengths: range of each spacing and extent in mm.
        intensities: range of each quantile after normalisation, and of the correlation of neighbours.
        volumes_ml: range of each structure's volume.
        orientation: template that tells images from mirrored ones.

    References:
        Nearest in aim: Gonzalez et al., *Distance-based detection of out-of-distribution silent failures for Covid-19
        lung lesion segmentation*, Medical Image Analysis 82, 2022, which takes features of the network; here every
        figure has a name and a unit.
    """

    lengths: Mapping[str, Range]
    intensities: Mapping[str, Range]
    volumes_ml: Mapping[str, Range]
    orientation: OrientationTemplate

    @classmethod
    def from_json(cls, stored: Any) -> "Fingerprint":
        """Read the values of :meth:`to_json`.

        Raises:
            ValueError: a value is missing or has another type.
        """
        return TypeAdapter(cls).validate_json(json.dumps(stored))

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    @classmethod
    def merge(cls, several: Sequence["Fingerprint"]) -> "Fingerprint":
        """Unite the ranges of several folds.

        The template is the first one's.
        """
        first = several[0]

        def unite(name: str) -> dict[str, Range]:
            all_ranges = [getattr(each, name) for each in several]
            return {
                key: (min(each[key][0] for each in all_ranges), max(each[key][1] for each in all_ranges))
                for key in getattr(first, name)
            }

        return cls(unite("lengths"), unite("intensities"), unite("volumes_ml"), first.orientation)

    def describe_outside(self, figures: CaseFigures) -> list[str]:
        """Describe every figure outside its range; none for a usual case."""
        found = [
            *_list_outside(figures.lengths, self.lengths, " mm"),
            *_list_outside(figures.intensities, self.intensities),
        ]
        if not any(figures.volumes_ml.values()):
            return [*found, "no structure found"]
        found += _list_outside(figures.volumes_ml, self.volumes_ml, " ml")
        mirrored = [] if figures.thumbnail is None else self.orientation.find_mirrored(figures.thumbnail)
        if mirrored:
            axes = " and ".join(("rows", "columns")[axis] for axis in mirrored)
            found.append(f"surroundings as if the {axes} were in reverse order")
        return found


def make_fingerprint(cases: Iterable[CaseFigures]) -> Fingerprint | None:
    """Make the fingerprint of training cases.

    Fewer than 20 cases have no meaningful range, and give None.
    """
    figures = list(cases)
    seen = {index: each.thumbnail for index, each in enumerate(figures) if each.thumbnail is not None}
    if len(seen) < FEWEST_CASES:
        return None
    patients = [figures[index].patient_id for index in seen]

    def find_ranges(name: str) -> dict[str, Range]:
        rows = [getattr(each, name) for each in figures]
        return {key: (min(row[key] for row in rows), max(row[key] for row in rows)) for key in rows[0]}

    return Fingerprint(
        {name: _widen(limits, factor=1.25) for name, limits in find_ranges("lengths").items()},
        {name: _widen(limits, share=0.5) for name, limits in find_ranges("intensities").items()},
        {name: _widen(limits, factor=1.5) for name, limits in find_ranges("volumes_ml").items()},
        OrientationTemplate.fit([*seen.values()], patients=patients, half_mm=HALF_MM),
    )


def fingerprint_cases(folder: PreparedFolder, case_ids: Sequence[str]) -> Fingerprint | None:
    """Make the fingerprint of prepared cases.

    Of more than 200, as many are measured, evenly chosen.
    """
    if len(case_ids) < FEWEST_CASES:
        return None
    chosen = np.unique(np.linspace(0, len(case_ids) - 1, min(MOST_CASES, len(case_ids))).round().astype(int))
    manifest = folder.manifest
    return make_fingerprint(
        measure_prepared(
            folder.case(case_ids[index]),
            classes=manifest.classes,
            patient_id=manifest.by_id(case_ids[index]).patient_id,
        )
        for index in chosen
    )


def _list_outside(figures: Mapping[str, float], ranges: Mapping[str, Range], unit: str = "") -> list[str]:
    """List the figures outside their ranges.

    A model of another version may have ranges of other figures.
    """
    return [
        f"{name} {figures[name]:.3g}{unit}, not {low:.3g} to {high:.3g}"
        for name, (low, high) in ranges.items()
        if name in figures and not low <= figures[name] <= high
    ]


def _widen(limits: Range, *, factor: float = 1.0, share: float = 0.0) -> Range:
    low, high = limits
    margin = share * (high - low)
    return low / factor - margin, high * factor + margin
