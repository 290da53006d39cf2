"""Mirroring where structures have sides: refused along left and right, unless their labels are exchanged with it."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uumamba.config import RunConfig
from uumamba.data.case import Manifest
from uumamba.data.geometry import Geometry, find_geometry
from uumamba.data.prepared import PreparedFolder
from uumamba.data.sides import Sides, left_right_axes, left_right_axis, sides_of
from uumamba.runtime.errors import CaseError, UsageError

Swaps = dict[int, tuple[tuple[int, int], ...]]
"""For each spatial axis of the patch whose mirror exchanges labels: which."""


@dataclass(frozen=True)
class SidedRun:
    """What a run of a data set with sides does about them; it stands in the checkpoint.

    Args:
        left_right_axes: prepared axes that ran left to right in its training cases.
        swapped: label values that a mirror along that axis exchanged; empty where there was none.
    """

    left_right_axes: tuple[int, ...]
    swapped: tuple[tuple[int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"left_right_axes": list(self.left_right_axes), "swapped": [list(pair) for pair in self.swapped]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "SidedRun":
        """From :meth:`to_json`'s values."""
        return cls(tuple(stored["left_right_axes"]), tuple((first, second) for first, second in stored["swapped"]))

    def swaps(self, patch_size: Sequence[int]) -> Swaps:
        """For the augmentation and for averaging, by axis of the patch."""
        before = 3 - len(patch_size)
        return {axis - before: self.swapped for axis in self.left_right_axes if self.swapped and axis >= before}

    def check(self, geometry: Geometry, *, case_id: str) -> None:
        """Refuse a scan whose prepared axes lie otherwise than in training: left and right would be anybody's guess.

        Raises:
            CaseError: its left/right axis is none of the training's.
        """
        axis = left_right_axis(geometry)
        if axis not in self.left_right_axes:
            raise CaseError(
                case_id,
                f"its slices are cut so that prepared axis {axis} runs left to right, in training it was "
                f"{_listed(self.left_right_axes)}, and the structures have sides",
                "resample it to slices cut as in training",
            )


def sided_run(config: RunConfig, folder: PreparedFolder, case_ids: Sequence[str]) -> SidedRun | None:
    """Check a run's mirroring against the sides of its structures; None where none has a side.

    Args:
        config: the run.
        folder: the prepared cases.
        case_ids: those that are trained on.

    Raises:
        UsageError: a patch would be mirrored along left and right without its labels being exchanged, or they cannot
            be: the data set lists no pairs, that axis is not mirrored, or its scans are cut in different planes.
    """
    sides = sides_of(folder.manifest)
    axes = () if sides is None else left_right_axes(folder.case(case_id).geometry for case_id in case_ids)
    _refuse_wrong_mirror(config, folder.manifest, sides, axes)
    if sides is None:
        return None
    if not config.augment.swap_sides:
        return SidedRun(axes, ())
    if sides.unpaired:
        warnings.warn(
            f"Mirrored patches exchange the labels of {len(sides.pairs)} pairs; {', '.join(sides.unpaired)} lie on one "
            "side without a partner and keep theirs.",
            stacklevel=1,  # this line, so that it is shown once for all folds
        )
    return SidedRun(axes, sides.pairs)


def check_sides(config: RunConfig, manifest: Manifest, case_ids: Sequence[str]) -> None:
    """Refuse by the headers of raw scans what :func:`sided_run` would refuse once they had been prepared.

    Args:
        config: the run.
        manifest: the raw cases.
        case_ids: those that will be trained on; one whose header cannot be read is left to preparing, which says so.

    Raises:
        UsageError: as :func:`sided_run`.
    """
    sides = sides_of(manifest)
    axes = () if sides is None else left_right_axes(_geometries(manifest, case_ids))
    if sides is None or axes:
        _refuse_wrong_mirror(config, manifest, sides, axes)


def _geometries(manifest: Manifest, case_ids: Sequence[str]) -> Iterator[Geometry]:
    from data_prep.scan_files import read_grid

    for case_id in case_ids:
        try:
            grid = read_grid(manifest.by_id(case_id).image, case_id=case_id)
            yield find_geometry(grid.array.shape, spacing_mm=grid.spacing_mm, affine=grid.affine)
        except ValueError:
            continue


def _refuse_wrong_mirror(config: RunConfig, manifest: Manifest, sides: Sides | None, axes: Sequence[int]) -> None:
    swapping = config.augment.swap_sides
    if sides is None:
        if swapping:
            raise UsageError(f"augment.swap_sides is on, but no structure of {manifest.name} has a side; leave it out.")
        return
    before = 3 - config.net.spatial_dims
    mirrored = [axis for axis in axes if axis - before in config.augment.mirror_axes]
    if mirrored and not swapping:
        raise UsageError(_refusal(sides.structures, bool(sides.pairs), mirrored[0] - before, config))
    if swapping and (not sides.pairs or not mirrored or len(axes) > 1):
        raise UsageError(
            f"augment.swap_sides cannot be: {manifest.name} lists {len(sides.pairs)} mirror_pairs, its scans "
            f"run left to right along axis {_listed([axis - before for axis in axes])} of the patch, and "
            f"augment.mirror_axes is {list(config.augment.mirror_axes)}; it needs pairs, one such axis, and that axis "
            "mirrored."
        )


def _refusal(structures: Sequence[str], can_swap: bool, axis: int, config: RunConfig) -> str:
    allowed = [each for each in config.augment.mirror_axes if each != axis]
    swap = ", or exchange their labels with the mirror by augment.swap_sides=true" if can_swap else ""
    return (
        f"augment.mirror_axes {list(config.augment.mirror_axes)} mirrors left and right (axis {axis} of the patch), "
        f"but {', '.join(structures)} have sides; leave that axis out (augment.mirror_axes={allowed}){swap}."
    )


def _listed(axes: Sequence[int]) -> str:
    return " and ".join(map(str, axes))
