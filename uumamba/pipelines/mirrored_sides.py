"""Left/right mirroring of structures with sides.

In a mirrored patch a left kidney looks like a right one, so its label must become that of the right kidney.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uumamba.config import RunConfig
from uumamba.data.case import Manifest
from uumamba.data.geometry import Geometry
from uumamba.data.sides import Sides, left_right_axes, left_right_axis, read_sides
from uumamba.runtime.errors import require, require_case

Swaps = dict[int, tuple[tuple[int, int], ...]]
"""Pairs of label values to swap in a mirrored patch, by spatial axis of the patch."""


@dataclass(frozen=True)
class MirroredSides:
    """Left/right axes and swapped labels of a run, stored in its checkpoints.

    Args:
        left_right_axes: prepared axes from left to right in the training cases.
        swapped: pairs of label values to swap in a patch that is mirrored along a left/right axis; may be empty.
    """

    left_right_axes: tuple[int, ...]
    swapped: tuple[tuple[int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values."""
        return {"left_right_axes": list(self.left_right_axes), "swapped": [list(pair) for pair in self.swapped]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "MirroredSides":
        """Convert from the values of :meth:`to_json`."""
        return cls(tuple(stored["left_right_axes"]), tuple((first, second) for first, second in stored["swapped"]))

    def swaps(self, patch_size: Sequence[int]) -> Swaps:
        """Return the swapped labels by axis of the patch.

        Augmentation and mirror averaging use this mapping.
        """
        before = 3 - len(patch_size)
        return {axis - before: self.swapped for axis in self.left_right_axes if self.swapped and axis >= before}

    def check(self, geometry: Geometry, *, case_id: str) -> None:
        """Raise if a scan's left/right axis differs from training.

        The network could not tell left from right.

        Raises:
            CaseError: the slices have another orientation.
        """
        axis = left_right_axis(geometry)
        require_case(
            axis in self.left_right_axes,
            case_id,
            "left/right axis",
            got=axis,
            expected=f"{_join_axes(self.left_right_axes)}, as in training",
            fix="resample the scan to slices of the training's orientation",
        )


def check_sides(config: RunConfig, manifest: Manifest, geometries: Iterable[Geometry]) -> MirroredSides | None:
    """Check a run's mirroring against its structures' sides.

    Args:
        config: the run.
        manifest: the data set.
        geometries: those of the training cases, read only where structures have sides. Without any, as where no header
            can be read, nothing is checked.

    Returns:
        Axes and swapped labels; None if no structure has a side.

    Raises:
        UsageError: a patch would be mirrored left to right without a swap of labels, or a swap is impossible because
            the data set has no left/right pairs, the left/right axis is not mirrored, or the slices' orientation
            varies.
    """
    sides = read_sides(manifest)
    axes = () if sides is None else left_right_axes(geometries)
    if sides is None or axes:
        _check_mirror(config, manifest, sides, axes)
    if sides is None or not axes:
        return None
    if not config.augment.swap_sides:
        return MirroredSides(axes, ())
    if sides.unpaired:
        warnings.warn(
            f"Mirrored patches swap the labels of {len(sides.pairs)} pairs, not those of {', '.join(sides.unpaired)}, "
            "since these structures have a side but no partner.",
            stacklevel=1,  # this line, so that it is shown once for all folds
        )
    return MirroredSides(axes, sides.pairs)


def _check_mirror(config: RunConfig, manifest: Manifest, sides: Sides | None, axes: Sequence[int]) -> None:
    swap, mirror_axes = config.augment.swap_sides, config.augment.mirror_axes
    if sides is None:
        require(
            not swap,
            "augment.swap_sides",
            got=swap,
            expected=f"false with {manifest.name}, a data set without left and right structures",
        )
        return
    patch_axes = [axis - (3 - len(config.training.patch_size)) for axis in axes]
    mirrored = [axis for axis in patch_axes if axis in mirror_axes]
    require(
        swap or not mirrored,
        "augment.mirror_axes",
        got=list(mirror_axes),
        expected=f"{[axis for axis in mirror_axes if axis not in mirrored[:1]]}, without the left/right axis of "
        f"{', '.join(sides.structures)}",
        fix="remove the axis, or set augment.swap_sides=true" if sides.pairs else "remove the axis",
    )
    require(
        not swap or (sides.pairs and mirrored and len(axes) == 1),
        "augment.swap_sides",
        got=f"true with {len(sides.pairs)} mirror_pairs of {manifest.name}, left/right patch axis "
        f"{_join_axes(patch_axes)} and augment.mirror_axes {list(mirror_axes)}",
        expected="true only with mirror_pairs and one left/right axis in augment.mirror_axes",
    )


def _join_axes(axes: Sequence[int]) -> str:
    return " and ".join(map(str, axes))
