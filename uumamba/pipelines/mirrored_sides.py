"""Left/right mirroring of structures with sides: refused, unless it swaps their labels too."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uumamba.config import RunConfig
from uumamba.data.case import Manifest
from uumamba.data.geometry import Geometry, find_geometry
from uumamba.data.prepared import PreparedFolder
from uumamba.data.sides import Sides, left_right_axes, left_right_axis, read_sides
from uumamba.runtime.errors import CaseError, require

Swaps = dict[int, tuple[tuple[int, int], ...]]
"""Label values that a mirror along a spatial axis of the patch swaps, by axis."""


@dataclass(frozen=True)
class MirroredSides:
    """Left/right axes and swapped labels of a run, stored in its checkpoints.

    Args:
        left_right_axes: prepared axes that run left to right in the training cases.
        swapped: label values that a mirror along that axis swaps; empty where there is none.
    """

    left_right_axes: tuple[int, ...]
    swapped: tuple[tuple[int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {"left_right_axes": list(self.left_right_axes), "swapped": [list(pair) for pair in self.swapped]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "MirroredSides":
        """Convert from the values of :meth:`to_json`."""
        return cls(tuple(stored["left_right_axes"]), tuple((first, second) for first, second in stored["swapped"]))

    def swaps(self, patch_size: Sequence[int]) -> Swaps:
        """Swapped labels by axis of the patch, for augmentation and averaging."""
        before = 3 - len(patch_size)
        return {axis - before: self.swapped for axis in self.left_right_axes if self.swapped and axis >= before}

    def check(self, geometry: Geometry, *, case_id: str) -> None:
        """Raise if a scan's left/right axis differs from that of training: the network could not tell the sides.

        Raises:
            CaseError: its slices have another orientation.
        """
        axis = left_right_axis(geometry)
        if axis not in self.left_right_axes:
            expected = f"{_join(self.left_right_axes)} as in training, since the structures have sides"
            fix = "resample the scan to slices of the training's orientation"
            raise CaseError(case_id, "left/right axis", got=axis, expected=expected, fix=fix)


def check_prepared_sides(config: RunConfig, folder: PreparedFolder, case_ids: Sequence[str]) -> MirroredSides | None:
    """Check a run's mirroring against its structures' sides; None where no structure has a side.

    Args:
        config: the run.
        folder: the prepared cases.
        case_ids: the training cases.

    Raises:
        UsageError: a patch would be mirrored left to right without a swap of labels, or a swap is impossible: the data
            set lists no pairs, that axis is not mirrored, or the orientation of its slices varies.
    """
    sides = read_sides(folder.manifest)
    axes = () if sides is None else left_right_axes(folder.case(case_id).geometry for case_id in case_ids)
    _check_mirror(config, folder.manifest, sides, axes)
    if sides is None:
        return None
    if not config.augment.swap_sides:
        return MirroredSides(axes, ())
    if sides.unpaired:
        warnings.warn(
            f"Mirrored patches swap the labels of {len(sides.pairs)} pairs; {', '.join(sides.unpaired)} have a side "
            "and no partner and keep their label.",
            stacklevel=1,  # this line, so that it is shown once for all folds
        )
    return MirroredSides(axes, sides.pairs)


def check_raw_sides(config: RunConfig, manifest: Manifest, case_ids: Sequence[str]) -> None:
    """Check mirroring by the headers of raw scans, with the result of :func:`check_prepared_sides`.

    Args:
        config: the run.
        manifest: the raw cases.
        case_ids: the training cases; a case with an unreadable header is left to preparing, which reports it.

    Raises:
        UsageError: as :func:`check_prepared_sides`.
    """
    sides = read_sides(manifest)
    axes = () if sides is None else left_right_axes(_geometries(manifest, case_ids))
    if sides is None or axes:
        _check_mirror(config, manifest, sides, axes)


def _geometries(manifest: Manifest, case_ids: Sequence[str]) -> Iterator[Geometry]:
    from data_prep.scan_files import read_grid

    for case_id in case_ids:
        try:
            grid = read_grid(manifest.by_id(case_id).image, case_id=case_id)
            yield find_geometry(grid.array.shape, spacing_mm=grid.spacing_mm, affine=grid.affine)
        except ValueError:
            continue


def _check_mirror(config: RunConfig, manifest: Manifest, sides: Sides | None, axes: Sequence[int]) -> None:
    swap, mirror_axes = config.augment.swap_sides, config.augment.mirror_axes
    if sides is None:
        require(
            not swap, "augment.swap_sides", got=swap, expected=f"false: {manifest.name} has no structure with sides"
        )
        return
    of_patch = [axis - (3 - config.net.spatial_dims) for axis in axes]
    mirrored = [axis for axis in of_patch if axis in mirror_axes]
    require(
        swap or not mirrored,
        "augment.mirror_axes",
        got=list(mirror_axes),
        expected=f"{[axis for axis in mirror_axes if axis not in mirrored[:1]]}, without the left/right axis, since "
        f"{', '.join(sides.structures)} have sides",
        fix="remove the axis, or set augment.swap_sides=true" if sides.pairs else "remove the axis",
    )
    require(
        not swap or (sides.pairs and mirrored and len(axes) == 1),
        "augment.swap_sides",
        got=f"true with {len(sides.pairs)} mirror_pairs of {manifest.name}, left/right along axis {_join(of_patch)} of "
        f"the patch and augment.mirror_axes {list(mirror_axes)}",
        expected="pairs and one left/right axis that is mirrored",
    )


def _join(axes: Sequence[int]) -> str:
    return " and ".join(map(str, axes))
