"""Ground truth of the coronary phantom: centrelines, diameters and topology."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_prep.phantoms.coronary.coronary_case import draw_anatomy
from data_prep.phantoms.coronary.coronary_growth import Branch
from data_prep.phantoms.curves import compute_arc_lengths


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
        return sum(float(compute_arc_lengths(branch.centreline_mm)[-1]) for branch in self.branches)


def compute_coronary_truth(number: int, *, seed: int = 0) -> CoronaryTruth:
    """Recompute the ground truth of a case: centrelines, diameters and topology.

    At bifurcations the label is wider than the diameters, by the fillet between the branches. A branch without parent
    starts at the aorta's wall, where its label is cut off. Free ends are rounded, so that the label extends beyond the
    centreline by half a diameter.

    Args:
        number: number of the case, from 1 on.
        seed: seed of :func:`data_prep.phantoms.coronary.coronary_phantom.write_coronary_phantom`.

    """
    anatomy = draw_anatomy(number, seed)
    to_ras = (-1.0, -1.0, 1.0)
    branches = tuple(
        replace(branch, centreline_mm=(branch.centreline_mm + anatomy.table_mm) * to_ras) for branch in anatomy.branches
    )
    lesions = anatomy.lesions
    return CoronaryTruth(
        branches=branches,
        betti=(sum(branch.parent is None for branch in branches), 0, 0),
        affine=anatomy.affine,
        shape=anatomy.grid.shape,
        calcified=tuple(sorted({name for name, _ in lesions.plaques})),
        stented=tuple(sorted({name for name, _ in lesions.stents})),
        moving=tuple(sorted(lesions.moving)),
        motion_mm=float(np.linalg.norm(lesions.motion_mm)),
    )
