"""Ground truth of the aorta phantom: centrelines, diameters and topology."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.aorta import STRUCTURES
from data_prep.phantoms.aorta.aorta_tree import draw_aorta_tree, make_generator
from data_prep.phantoms.aorta.aorta_vessels import Tree, Vessel
from data_prep.phantoms.curves import Points, compute_arc_lengths


@dataclass(frozen=True)
class Segment:
    """Centreline in RAS+ millimetres and parent of one structure.

    The centreline of a branch starts on its parent's, inside the parent's lumen. The first zone has no parent.
    """

    name: str
    parent: str
    points_mm: Points
    diameters_mm: NDArray[np.float64]

    @property
    def length_mm(self) -> float:
        """Length of the centreline."""
        return float(compute_arc_lengths(self.points_mm)[-1])


@dataclass(frozen=True)
class AortaTruth:
    """Ground truth of a phantom's aorta.

    Args:
        segments: structures by name, in the order of the label values.
        dissected: whether a flap divides the lumen.
        bovine: whether innominate and left carotid artery share an ostium.
        betti_numbers: numbers of parts, tunnels and cavities in the union of all structures, which is one tree.
    """

    segments: Mapping[str, Segment]
    dissected: bool
    bovine: bool
    betti_numbers: tuple[int, int, int] = (1, 0, 0)

    @property
    def length_mm(self) -> float:
        """Total length of the centrelines."""
        return sum(segment.length_mm for segment in self.segments.values())


def compute_aorta_truth(number: int, seed: int = 0) -> AortaTruth:
    """Recompute the ground truth of a subject by cutting its vessels into structures."""
    tree = draw_aorta_tree(make_generator(number, seed))
    segments = [segment for vessel in tree.vessels for segment in _cut_vessel(vessel, tree)]
    ordered = {segment.name: segment for segment in sorted(segments, key=lambda found: STRUCTURES[found.name])}
    return AortaTruth(ordered, tree.flap is not None, tree.bovine)


def _cut_vessel(vessel: Vessel, tree: Tree) -> list[Segment]:
    """Cut a vessel into its structures; neighbours share the point between them."""
    cuts = [*np.searchsorted(vessel.arc_mm, vessel.starts_mm), len(vessel.points_mm) - 1]
    parent = _find_part(tree.vessel(vessel.parent), vessel.points_mm[0]) if vessel.parent else ""
    segments = []
    for part, first, last in zip(vessel.parts, cuts[:-1], cuts[1:], strict=True):
        here = slice(int(first), int(last) + 1)
        segments.append(Segment(part, parent, vessel.points_mm[here], 2 * vessel.radii_mm[here]))
        parent = part
    return segments


def _find_part(vessel: Vessel, point_mm: Points) -> str:
    nearest = int(np.argmin(np.linalg.norm(vessel.points_mm - point_mm, axis=1)))
    return vessel.parts[int(np.searchsorted(vessel.starts_mm, vessel.arc_mm[nearest], side="right")) - 1]
