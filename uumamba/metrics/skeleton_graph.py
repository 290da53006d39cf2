"""Graph of a skeleton, with one loop for each tunnel."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uumamba.types import Mask

# The 13 neighbours that follow a voxel in array order, so that each pair is visited once.
_FORWARD = np.array([step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)])
_NONE = -1


@dataclass(frozen=True)
class SkeletonGraph:
    """Voxels of a skeleton and the edges between them.

    Args:
        points_mm: ``(n, 3)``, centres of the voxels.
        edges: ``(m, 2)``, pairs of rows of ``points_mm``.
    """

    points_mm: NDArray[np.float64]
    edges: NDArray[np.intp]

    @property
    def edge_lengths_mm(self) -> NDArray[np.float64]:
        """Length of each edge, ``(m,)``."""
        ends = self.points_mm[self.edges]
        return np.asarray(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1), np.float64)

    @property
    def degrees(self) -> NDArray[np.intp]:
        """Number of edges at each point, ``(n,)``.

        An end has one edge, a point along a branch two, a branch point three or more.
        """
        return np.bincount(self.edges.reshape(-1), minlength=len(self.points_mm))

    @property
    def directed_edges(self) -> NDArray[np.intp]:
        """Start and stop of each edge in both directions, ``(2, 2m)``."""
        return np.concatenate([self.edges, self.edges[:, ::-1]]).T


def skeleton_graph(skeleton: Mask, *, spacing_mm: Sequence[float]) -> SkeletonGraph:
    """Build the shortest graph with a skeleton's parts and tunnels.

    Its points are the voxels of the skeleton. Edges between all 26-neighbours would count branch points twice: three
    voxels that touch each other close a triangle that is no loop of the vessel. Triangles generate all such false
    loops, since voxels that are pairwise neighbours have a common corner. The longest edge of each independent sum of
    triangles is removed. The result has exactly ``b0`` parts and ``b1`` loops, and is the shortest such graph.

    Args:
        skeleton: boolean array ``(Z, Y, X)``, in any axis order; slow for thick masks.
        spacing_mm: voxel edge lengths in the order of the array's axes.

    Example:
        >>> branch = np.zeros((1, 3, 3), bool)
        >>> branch[0, 1, :] = branch[0, 2, 1] = True
        >>> skeleton_graph(branch, spacing_mm=(1.0, 1.0, 1.0)).edge_lengths_mm
        array([1., 1., 1.])

    References:
        Edelsbrunner, Letscher & Zomorodian, *Topological Persistence and Simplification*, Discrete & Computational
        Geometry 28, 2002.
        Differs from the paper: of the pairing, only the edges that triangles fill are used.
    """
    voxels = np.argwhere(skeleton)
    table, edges = _list_edges(voxels, skeleton.shape)
    graph = SkeletonGraph(voxels.astype(np.float64) * np.asarray(spacing_mm), edges)
    filled = _find_filled_edges(_list_triangles(table, edges), graph.edge_lengths_mm)
    return SkeletonGraph(graph.points_mm, np.delete(edges, filled, axis=0))


def _list_edges(voxels: NDArray[np.intp], shape: tuple[int, ...]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the edges between neighbouring voxels, as table and list.

    The table ``(n, 13)`` holds the number of the edge from each voxel along each forward step, or -1; the list
    ``(m, 2)`` holds the two voxels of each edge.
    """
    strides = np.array([(shape[1] + 2) * (shape[2] + 2), shape[2] + 2, 1])
    keys = (voxels + 1) @ strides
    wanted = keys[:, None] + _FORWARD @ strides
    nearest = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    joined = keys[nearest] == wanted if len(keys) else np.zeros(wanted.shape, bool)
    starts, _ = np.nonzero(joined)
    table = np.full(joined.shape, _NONE)
    table[joined] = np.arange(len(starts))
    return table, np.stack([starts, nearest[joined]], axis=1)


def _list_triangles(table: NDArray[np.intp], edges: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the edges of all triangles, ``(t, 3)``.

    A triangle is three voxels that are pairwise neighbours.
    """
    numbers = {tuple(step): number for number, step in enumerate(_FORWARD.tolist())}
    found = [np.empty((0, 3), np.intp)]
    for (a, first), (b, second) in itertools.combinations(enumerate(_FORWARD), 2):
        between = numbers.get(tuple((second - first).tolist()))
        if between is not None:
            voxels = np.flatnonzero((table[:, a] != _NONE) & (table[:, b] != _NONE))
            sides = table[voxels, a], table[voxels, b]
            found.append(np.stack([*sides, table[edges[sides[0], 1], between]], axis=1))
    return np.concatenate(found)


def _find_filled_edges(triangles: NDArray[np.intp], lengths_mm: NDArray[np.float64]) -> NDArray[np.intp]:
    """Find the longest edge of each independent sum of triangles.

    The sums come from Gaussian elimination over GF(2).
    """
    order = np.argsort(lengths_mm, kind="stable")
    rank = np.argsort(order)
    sums: dict[int, set[int]] = {}
    for triangle in rank[triangles].tolist():
        remaining = set(triangle)
        while remaining and (longest := max(remaining)) in sums:
            remaining = remaining ^ sums[longest]
        if remaining:
            sums[max(remaining)] = remaining
    return order[np.fromiter(sums, np.intp, len(sums))]
