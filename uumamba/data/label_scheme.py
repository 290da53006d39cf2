"""Labels of a data set: structures, regions, ignored voxels and colours."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pydantic import TypeAdapter

from uumamba.data.case import IGNORED, Manifest, number_classes


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
    def from_manifest(cls, manifest: Manifest) -> "LabelScheme":
        """Copy the fields of a manifest."""
        return cls(**{each.name: getattr(manifest, each.name) for each in fields(cls)})

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "LabelScheme":
        """Read the keys of :meth:`to_json`; other keys are left out.

        Raises:
            ValueError: a key has another type.
            UsageError: the values do not fit each other, as in a manifest.
        """
        given = {each.name: stored[each.name] for each in fields(cls) if each.name in stored}
        read = TypeAdapter(cls).validate_json(json.dumps(given), strict=True)
        checked = {each.name: getattr(read, each.name) for each in fields(cls)}
        return cls.from_manifest(Manifest("checkpoint", "any", cases=(), **checked))

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
