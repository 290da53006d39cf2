"""Anatomy of the coronary phantom's cases."""

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
        ostia = sum(branch.parent is None for branch in branches)
        if betti_numbers(label.astype(bool)) == (ostia, 0, 0):  # a tree has neither tunnels nor cavities
            return Anatomy(
                heart,
                branches,
                draw_lesions(branches, rng),
                grid,
                rng.uniform((-40, -230, -1800), (40, -120, 1800)),
                label,
                (left_mm, right_mm),
            )
    raise RuntimeError(f"no coronary tree was found for case {number} of seed {seed} in {_ATTEMPTS} attempts")
