"""Cases of the coronary phantom before they are scanned, and their known truth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.coronary.coronary_grid import Field, Grid
from data_prep.phantoms.coronary.coronary_growth import Branch
from data_prep.phantoms.coronary.coronary_heart import CoronaryHeart, draw_coronary_heart
from data_prep.phantoms.coronary.coronary_lesions import Lesions, draw_lesions
from data_prep.phantoms.coronary.coronary_scanner import WIDTHS, draw_grid, draw_label, draw_spacing, in_patient
from data_prep.phantoms.coronary.coronary_tree import draw_tree
from uumamba.metrics import betti_numbers
from uumamba.runtime.seeds import key_to_seed

_ATTEMPTS = 50


@dataclass(frozen=True)
class CoronaryTruth:
    """Known truth of one case.

    Args:
        number: of the case.
        branches: centrelines in RAS+ millimetres, as the affine maps voxels, and diameters; parents before children.
        betti: number of parts, tunnels and cavities of the label.
        affine: voxel indices to RAS+ millimetres.
        shape: of image and label.
        calcified: branches with plaques.
        stented: branches with a stent.
        moving: branches that moved during the scan, whose labels show the middle of the motion.
        motion_mm: length of the motion; 0 for none.
    """

    number: int
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
        """Length of all centrelines together; each branch counts from the centreline of its parent."""
        return sum(branch.length_mm for branch in self.branches)


@dataclass(frozen=True)
class Anatomy:
    """One case before it is scanned; branches are in the patient's frame (left, posterior, superior).

    Args:
        heart: the surface of the arteries' courses.
        branches: the arteries.
        lesions: their lesions.
        grid: the field of view; the heart's middle is its 0.
        table_mm: position of that middle in the scanner.
        label: 1 in the arteries.
        distances_mm: to the walls of the left tree and of the others.
    """

    heart: CoronaryHeart
    branches: tuple[Branch, ...]
    lesions: Lesions
    grid: Grid
    table_mm: NDArray[np.float64]
    label: NDArray[np.uint8]
    distances_mm: tuple[Field, Field]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to RAS+ millimetres."""
        affine = np.diag([*self.grid.spacing_mm, 1.0])
        affine[:3, 3] = np.array(self.grid.origin_mm) + self.table_mm
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def coronary_truth(number: int, *, seed: int = 0) -> CoronaryTruth:
    """Draw a case of the phantom again for its centrelines, diameters and topology.

    Diameters are those drawn; where branches meet, the label is wider by the rounding of the corner between them. A
    branch without parent starts at the aorta's wall, where its label is cut off; free ends are rounded, so the label
    reaches beyond the centreline by half a diameter.

    Args:
        number: of the case, from 1 on.
        seed: as given to :func:`data_prep.phantoms.coronary.coronary_phantom.write_coronary_phantom`.

    Example:
        >>> truth = coronary_truth(1)
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
        number=number,
        branches=branches,
        betti=_expected_betti(branches),
        affine=anatomy.affine,
        shape=anatomy.grid.shape,
        calcified=tuple(sorted({name for name, _ in lesions.plaques})),
        stented=tuple(sorted({name for name, _ in lesions.stents})),
        moving=tuple(sorted(lesions.moving)),
        motion_mm=float(np.linalg.norm(lesions.motion_mm)),
    )


def draw_anatomy(number: int, seed: int) -> Anatomy:
    """Draw trees until one has room and a label with the topology of its centrelines."""
    for attempt in range(_ATTEMPTS):
        rng = np.random.default_rng(key_to_seed(seed, "coronary phantom", number, attempt))
        heart = draw_coronary_heart(rng)
        spacing_mm = draw_spacing(rng)
        tree = draw_tree(heart, rng, widths_mm=(WIDTHS[0] * max(spacing_mm), WIDTHS[1] * min(spacing_mm)))
        if tree is None:
            continue
        branches = in_patient(tree, heart)
        grid = draw_grid(branches, spacing_mm, rng)
        label, left_mm, right_mm = draw_label(grid, branches, heart)
        if betti_numbers(label.astype(bool)) == _expected_betti(branches):
            lesions = draw_lesions(branches, rng)
            table_mm = rng.uniform((-40, -230, -1800), (40, -120, 1800))
            return Anatomy(heart, branches, lesions, grid, table_mm, label, (left_mm, right_mm))
    raise RuntimeError(f"no coronary tree was found for case {number} of seed {seed} in {_ATTEMPTS} attempts")


def _expected_betti(branches: Sequence[Branch]) -> tuple[int, int, int]:
    """Expect one part for each ostium; a tree has neither tunnels nor cavities."""
    return sum(branch.parent is None for branch in branches), 0, 0
