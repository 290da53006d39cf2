"""Labels of a data set: structures, regions, ignored voxels and colours."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter

from uumamba.data.shown_text import check_shown
from uumamba.runtime.errors import require

MAX_LABEL_VALUE, MAX_STRUCTURES = 65535, 254
IGNORED = 255
"""Class of ignored voxels in prepared labels."""
_COLOUR = re.compile("#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class LabelScheme:
    """Meaning of label values and of a network's outputs.

    One object for loss, validation, prediction and checkpoints, which all need most of these fields. A manifest has
    them for a data set, a checkpoint for a model.

    Args:
        structures: label value of each structure, without background (0).
        ignore_value: label value of ignored voxels; None if there are none.
        regions: label values of each region; with regions a network has one output per region and no background.
        regions_class_order: label value that each region paints into a label map; a later region paints over others.
        colours: colour of a structure or region.

    Example:
        >>> scheme = LabelScheme({"oedema": 1, "core": 4}, regions={"whole": (1, 4), "core": (4,)})
        >>> scheme.outputs, scheme.target_classes
        (2, {'whole': (1, 2), 'core': (2,)})
    """

    structures: Mapping[str, int]
    ignore_value: int | None = None
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    regions_class_order: tuple[int, ...] = ()
    colours: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "LabelScheme":
        """Read the keys of :meth:`to_json`; other keys are left out.

        Raises:
            ValueError: a key has another type.
            UsageError: the values do not fit each other, as in a manifest.
        """
        given = {each.name: stored[each.name] for each in fields(cls) if each.name in stored}
        read = TypeAdapter(cls).validate_json(json.dumps(given), strict=True)
        check_label_values(read, "checkpoint")
        return read

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values; keys without a value are left out."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        kept = {name: value for name, value in given.items() if name == "structures" or value not in (None, {}, ())}
        converted: dict[str, Any] = json.loads(json.dumps(kept, default=dict))
        return converted

    @property
    def targets(self) -> dict[str, tuple[int, ...]]:
        """Label values of everything that is predicted and scored."""
        return dict(self.regions) or {name: (value,) for name, value in self.structures.items()}

    @property
    def target_classes(self) -> dict[str, tuple[int, ...]]:
        """Classes of each target in prepared labels."""
        class_of = self._number_values()
        return {name: tuple(class_of[value] for value in values) for name, values in self.targets.items()}

    @property
    def outputs(self) -> int:
        """Number of a network's outputs: the regions, or the structures and background."""
        return len(self.regions) or len(self.structures) + 1

    @property
    def membership(self) -> tuple[tuple[bool, ...], ...] | None:
        """Table ``(classes, regions)`` of the classes in each region; None without regions."""
        if not self.regions:
            return None
        parts = [self.target_classes[name] for name in self.regions]
        return tuple(tuple(number in part for part in parts) for number in range(len(self.structures) + 1))

    @property
    def painted(self) -> tuple[int, ...] | None:
        """Class that each region paints; None without regions."""
        class_of = self._number_values()
        return tuple(class_of[value] for value in self.regions_class_order) if self.regions else None

    @property
    def ignore_label(self) -> int | None:
        """Class of ignored voxels in prepared labels; None if there are none."""
        return None if self.ignore_value is None else IGNORED

    def _number_values(self) -> dict[int, int]:
        classes = number_classes(self.structures)
        return {value: classes[name] for name, value in self.structures.items()}


def number_classes(structures: Mapping[str, int]) -> dict[str, int]:
    """Number structures from 1 on, in the order of their label values.

    Networks, prepared labels and probabilities have these classes; label maps in files have the label values.

    Example:
        >>> number_classes({"LV": 500, "RV": 3})
        {'LV': 2, 'RV': 1}
    """
    ordered = sorted(structures.values())
    return {name: 1 + ordered.index(value) for name, value in structures.items()}


def check_label_values(labels: LabelScheme, name: str) -> None:
    """Raise if structures, regions and colours do not fit each other.

    Args:
        labels: the labels.
        name: name of the data set, for errors.

    Raises:
        UsageError: see :class:`uumamba.data.case.Manifest`.
    """
    _check_values(labels, name)
    _check_regions(labels, name)
    for key, colour in labels.colours.items():
        require(
            key in {*labels.structures, *labels.regions} and _COLOUR.fullmatch(colour),
            f"{name}: colours.{key}",
            got=colour,
            expected="the colour of a structure or region, such as #d62728",
        )


def _check_values(labels: LabelScheme, name: str) -> None:
    values, ignored = [*labels.structures.values()], labels.ignore_value
    for key, value in [*labels.structures.items(), *([] if ignored is None else [("ignore_value", ignored)])]:
        check_shown(key, f"{name}: labels")
        require(
            isinstance(value, int) and 1 <= value <= MAX_LABEL_VALUE,
            f"{name}: labels.{key}",
            got=value,
            expected=f"an integer from 1 to {MAX_LABEL_VALUE}",
        )
    require(
        len(values) == len({*values}) <= MAX_STRUCTURES,
        f"{name}: labels",
        got=values,
        expected=f"up to {MAX_STRUCTURES} structures, each with its own value",
    )
    require(ignored not in values, f"{name}: ignore_value", got=ignored, expected="the value of no structure")


def _check_regions(labels: LabelScheme, name: str) -> None:
    values = [*labels.structures.values()]
    for region, parts in labels.regions.items():
        check_shown(region, f"{name}: regions")
        require(
            parts and {*parts} <= {*values},
            f"{name}: regions.{region}",
            got=list(parts),
            expected=f"label values of structures: {', '.join(map(str, values))}",
        )
    order = labels.regions_class_order
    require(
        len(order) == len({*order}) == len(labels.regions) and {*order} <= {*values},
        f"{name}: regions_class_order",
        got=list(order),
        expected=f"one label value for each of the {len(labels.regions)} regions, each once",
        fix="list the value that each region paints, in the order of the regions",
    )
    _check_painting(labels, name)


def _check_painting(labels: LabelScheme, data_set: str) -> None:
    """Raise if painted regions would not be the regions again.

    Where every region is predicted correctly, the painted value must be in the same regions as the true one.
    """
    regions = labels.regions.items()
    paints = dict(zip(labels.regions, labels.regions_class_order, strict=True))
    for name, value in labels.structures.items():
        true = [region for region, parts in regions if value in parts]
        painted = paints[true[-1]] if true else 0
        found = [region for region, parts in regions if painted in parts]
        require(
            found == true,
            f"{data_set}: regions_class_order",
            got=list(labels.regions_class_order),
            expected=f"where {name} is, a last value that is in {', '.join(true)} and no other region, not {painted}",
            fix="list outer regions before inner ones, and give each overlap a region of its own",
        )
