"""Anatomy of the coronary phantom's cases, and their ground truth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.coronary.coronary_grid import CoronaryGrid
from data_prep.phantoms.coronary.coronary_growth import Branch, NoSpaceError
from data_prep.phantoms.coronary.coronary_heart import CoronaryHeart, draw_coronary_heart
from data_prep.phantoms.coronary.coronary_lesions import Lesions, draw_lesions
from data_prep.phantoms.coronary.coronary_scanner import WIDTHS, draw_coronary_grid, draw_label, draw_spacing
from data_prep.phantoms.coronary.coronary_tree import draw_coronary_tree
from data_prep.phantoms.scanner_noise import Field
from uumamba.metrics import betti_numbers
from uumamba.runtime.seeds import key_to_seed

_ATTEMPTS = 50


@dataclass(frozen=True)
class CoronaryTruth:
    """Ground truth of one case.

    Args:
        branches: centrelines in RAS+ millimetres and diameters; parents precede children.
        betti: numbers of parts, tunnels and cavities of the label.
        affine: voxel indices to RAS+ millimetres.
        shape: shape of image and label.
        calcified: branches with plaques.
        stented: branches with a stent.
        moving: branches that moved during the scan; the label shows them at the middle of the motion.
        motion_mm: length of the motion; 0 for none.
    """

    branches: tuple[Branch, ...]
    betti: tuple[int, int, int]
    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    calcified: tuple[str, ...]
    stented: tuple[str, ...]
    moving: tuple[str, ...]
    motion_mm: float

    @property
    def length_mm(self) -> float:
        """Total length of the centrelines; a branch starts on its parent's centreline."""
        return sum(branch.length_mm for branch in self.branches)


@dataclass(frozen=True)
class Anatomy:
    """Anatomy of one case, in the patient's frame (left, posterior, superior).

    Args:
        heart: the heart; the arteries follow its surface.
        branches: the arteries.
        lesions: lesions of the arteries.
        grid: the field of view, with the heart's centre as origin.
        table_mm: position of the heart's centre in the scanner.
        label: 1 in the arteries.
        distances_mm: signed distances to the walls of the left tree and of the right one.
    """

    heart: CoronaryHeart
    branches: tuple[Branch, ...]
    lesions: Lesions
    grid: CoronaryGrid
    table_mm: NDArray[np.float64]
    label: NDArray[np.uint8]
    distances_mm: tuple[Field, Field]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to RAS+ millimetres."""
        affine = np.diag([*self.grid.spacing_mm, 1.0])
        affine[:3, 3] = np.array(self.grid.origin_mm) + self.table_mm
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def compute_coronary_truth(number: int, *, seed: int = 0) -> CoronaryTruth:
    """Recompute the ground truth of a case: centrelines, diameters and topology.

    At bifurcations the label is wider than the diameters, by the fillet between the branches. A branch without parent
    starts at the aorta's wall, where its label is cut off. Free ends are rounded, so that the label extends beyond the
    centreline by half a diameter.

    Args:
        number: number of the case, from 1 on.
        seed: seed of :func:`data_prep.phantoms.coronary.coronary_phantom.write_coronary_phantom`.

    Example:
        >>> truth = compute_coronary_truth(1)
        >>> truth.branches[0].name, truth.branches[1].parent, truth.betti[1:]
        ('LM', 'LM', (0, 0))
    """
    anatomy = draw_anatomy(number, seed)
    to_ras = (-1.0, -1.0, 1.0)
    branches = tuple(
        replace(branch, centreline_mm=(branch.centreline_mm + anatomy.table_mm) * to_ras) for branch in anatomy.branches
    )
    lesions = anatomy.lesions
    return CoronaryTruth(
        branches=branches,
        betti=_compute_expected_betti(branches),
        affine=anatomy.affine,
        shape=anatomy.grid.shape,
        calcified=tuple(sorted({name for name, _ in lesions.plaques})),
        stented=tuple(sorted({name for name, _ in lesions.stents})),
        moving=tuple(sorted(lesions.moving)),
        motion_mm=float(np.linalg.norm(lesions.motion_mm)),
    )


def draw_anatomy(number: int, seed: int) -> Anatomy:
    """Draw a case whose arteries fit and whose label has their topology."""
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng(key_to_seed(seed, "coronary phantom", number, attempt))
        heart = draw_coronary_heart(rng)
        spacing_mm = draw_spacing(rng)
        widths_mm = (WIDTHS[0] * max(spacing_mm), WIDTHS[1] * min(spacing_mm))
        try:
            tree = draw_coronary_tree(heart, rng, widths_mm=widths_mm)
        except NoSpaceError:
            continue
        branches = tuple(replace(each, centreline_mm=each.centreline_mm @ heart.to_patient.T) for each in tree)
        grid = draw_coronary_grid(branches, spacing_mm, rng)
        label, left_mm, right_mm = draw_label(grid, branches, heart)
        if betti_numbers(label.astype(bool)) == _compute_expected_betti(branches):
            lesions = draw_lesions(branches, rng)
            table_mm = rng.uniform((-40, -230, -1800), (40, -120, 1800))
            return Anatomy(heart, branches, lesions, grid, table_mm, label, (left_mm, right_mm))
    raise RuntimeError(f"no coronary tree was found for case {number} of seed {seed} in {_ATTEMPTS} attempts")


def _compute_expected_betti(branches: Sequence[Branch]) -> tuple[int, int, int]:
    """Count one part per ostium; a tree has neither tunnels nor cavities."""
    return sum(branch.parent is None for branch in branches), 0, 0
