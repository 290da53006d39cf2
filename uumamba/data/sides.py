"""Structures on the left or right side, which mirroring exchanges."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from nibabel.orientations import io_orientation

from uumamba.data.case import Manifest
from uumamba.data.geometry import Geometry
from uumamba.runtime.errors import require


@dataclass(frozen=True)
class Sides:
    """Left and right structures of a data set, from its manifest.

    Args:
        structures: names of the structures on one side.
        pairs: label values that a left/right mirror exchanges, the right structure first.
        unpaired: names of structures on one side without a counterpart on the other side.
    """

    structures: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    unpaired: tuple[str, ...]


def read_sides(manifest: Manifest) -> Sides | None:
    """Read ``sides`` and ``mirror_pairs`` of a manifest.

    None if no structure has a side.

    Raises:
        UsageError: a structure is not in the manifest, or is named twice.

    Example:
        >>> extra = {"sides": {"R": "right", "L": "left", "LCC": "left"}, "mirror_pairs": [["R", "L"]]}
        >>> read_sides(Manifest("toy", "CT", {"R": 1, "L": 2, "LCC": 3}, (), extra=extra))
        Sides(structures=('R', 'L', 'LCC'), pairs=((1, 2),), unpaired=('LCC',))
    """
    sided = dict(manifest.extra.get("sides") or {})
    pairs = [tuple(pair) for pair in manifest.extra.get("mirror_pairs") or ()]
    paired = [name for pair in pairs for name in pair]
    names = (*sided, *(name for name in paired if name not in sided))
    if not names:
        return None
    require(
        set(names) <= manifest.structures.keys()
        and len(set(paired)) == len(paired)
        and all(len(pair) == 2 for pair in pairs),
        f"{manifest.name}: sides, mirror_pairs",
        got=f"{sided}, {pairs}",
        expected=f"pairs of two structures of {', '.join(manifest.structures)}, each at most once",
        fix="correct dataset.json",
    )
    return Sides(
        structures=names,
        pairs=tuple((manifest.classes[right], manifest.classes[left]) for right, left in pairs),
        unpaired=tuple(name for name in names if name not in paired),
    )


def left_right_axis(geometry: Geometry) -> int:
    """Find the prepared axis between the patient's left and right.

    The axis may run in either direction.

    Example:
        >>> from uumamba.data.geometry import find_geometry
        >>> left_right_axis(find_geometry((216, 256, 10), spacing_mm=(1.5, 1.5, 10.0)))
        2
    """
    canonical = io_orientation(np.array(geometry.affine))[:, 0]
    return next(axis for axis, native in enumerate(geometry.axes) if canonical[native] == 0)


def left_right_axes(geometries: Iterable[Geometry]) -> tuple[int, ...]:
    """List the prepared axes that run left to right.

    Scans with different slice orientations have different axes.
    """
    return tuple(sorted({left_right_axis(geometry) for geometry in geometries}))
