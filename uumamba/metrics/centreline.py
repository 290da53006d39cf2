"""Centreline length of a vessel tree."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uumamba.metrics.box import bounding_box
from uumamba.metrics.mask_checks import check_2d_or_3d, check_pair, check_spacing
from uumamba.metrics.skeleton import skeletonize
from uumamba.metrics.skeleton_graph import SkeletonGraph, skeleton_graph
from uumamba.metrics.topology import fill_cavities
from uumamba.types import Mask

# The length of lines in random directions is 8 % too large without smoothing and 2 % too small with two rounds; more
# rounds shrink rings.
_SMOOTHING_ROUNDS = 2
# Number of edges that give the direction of an end: one edge is too few; 4 to 10 edges give equal lengths within 2 %.
_DIRECTION_EDGES = 6


def centreline_length_mm(mask: Mask, *, spacing_mm: Sequence[float]) -> float:
    r"""Total length of all branches of a mask's centreline, in millimetres.

    .. math:: \ell = \sum_{(a, b) \in E} \lVert x_a - x_b \rVert + \sum_{e \in \mathrm{ends}} \delta_e

    The skeleton is converted to a graph (:func:`~uumamba.metrics.skeleton_graph.skeleton_graph`) with as many loops as
    the mask, so branch points are not counted twice. Points between ends and branch points are smoothed twice with
    (1, 2, 1) / 4 in millimetres, because voxel steps would make an oblique line up to 15 % too long.
    :math:`\delta_e` extends each end in its direction to the last voxel centre inside the mask, because thinning
    shortens a thick vessel by its radius. Cavities are filled first; holes of a 2-D mask are loops.

    Ends are at voxel centres: n voxels along an axis are exactly (n - 1) spacings long, and so is a round tube that is
    longer than thick. The error for straight oblique tubes of 40 voxels is at most 6 % for voxels up to 2:1:1, and 25 %
    at 4:1:1, since thinning counts voxels. The length of a ball is anywhere between 0 and its diameter. An empty mask
    has length 0.

    Args:
        mask: boolean array ``(Y, X)`` or ``(Z, Y, X)``, in any axis order.
        spacing_mm: voxel edge lengths in the order of the array's axes.

    Raises:
        UsageError: the mask is not boolean, has neither two nor three axes, or the spacing does not match them.

    Example:
        >>> vessel = np.zeros((5, 5, 12), bool)
        >>> vessel[1:4, 1:4, 1:11] = True
        >>> centreline_length_mm(vessel, spacing_mm=(0.5, 0.5, 2.0))
        18.0
    """
    check_2d_or_3d(mask)
    check_spacing(spacing_mm, mask.ndim)
    lengths_mm = tuple(float(length) for length in spacing_mm)
    cut = mask[bounding_box(mask)]
    if mask.ndim == 2:
        cut, lengths_mm = cut[None], (1.0, *lengths_mm)
    solid = fill_cavities(cut)
    return length_from_skeleton(solid, skeletonize(solid), spacing_mm=lengths_mm)


def centreline_length_error(prediction: Mask, label: Mask, *, spacing_mm: Sequence[float]) -> float:
    r"""Signed relative error of the prediction's centreline length.

    .. math:: \frac{\ell_P - \ell_L}{\ell_L}

    Positive: too long (false branches); negative: too short (missed branches). Lengths are those of
    :func:`centreline_length_mm`. They ignore the position: report :func:`~uumamba.metrics.cl_dice` as well.

    Prediction empty: -1. Label empty, or of length 0 while the prediction's is not: ``inf``. Both of length 0: 0. Both
    empty: NaN.

    Args:
        prediction: boolean array ``(Y, X)`` or ``(Z, Y, X)``, in any axis order.
        label: boolean array of the same shape.
        spacing_mm: voxel edge lengths in the order of the array's axes.

    Raises:
        UsageError: a mask is not boolean, the shapes differ, have neither two nor three axes, or the spacing does not
            match them.

    Example:
        >>> label = np.zeros((3, 12), bool)
        >>> label[1, 1:12] = True
        >>> too_short = label.copy()
        >>> too_short[1, 9:] = False
        >>> centreline_length_error(too_short, label, spacing_mm=(0.5, 0.5))
        -0.3
    """
    check_pair(prediction, label)
    check_2d_or_3d(prediction, "prediction")
    check_spacing(spacing_mm, prediction.ndim)
    found_mm, wanted_mm = (
        centreline_length_mm(mask, spacing_mm=spacing_mm) if mask.any() else None for mask in (prediction, label)
    )
    return error_from_lengths(found_mm, wanted_mm)


def length_from_skeleton(solid: Mask, skeleton: Mask, *, spacing_mm: Sequence[float]) -> float:
    """Compute the centreline length from a precomputed skeleton.

    Args:
        solid: boolean array ``(Z, Y, X)`` without cavities.
        skeleton: skeleton of ``solid``.
        spacing_mm: voxel edge lengths in the order of the array's axes.
    """
    graph = skeleton_graph(skeleton, spacing_mm=spacing_mm)
    return float(_smooth(graph).edge_lengths_mm.sum() + _measure_end_extensions_mm(solid, graph, spacing_mm).sum())


def error_from_lengths(found_mm: float | None, wanted_mm: float | None) -> float:
    """Compute the relative error from two lengths; None for an empty mask."""
    if wanted_mm is None:
        return float("nan") if found_mm is None else float("inf")
    if found_mm is None:
        return -1.0
    if wanted_mm == 0:
        return 0.0 if found_mm == 0 else float("inf")
    return (found_mm - wanted_mm) / wanted_mm


def _smooth(graph: SkeletonGraph) -> SkeletonGraph:
    """Smooth the points between ends and branch points, which stay fixed."""
    starts, stops = graph.directed_edges
    between = graph.degrees == 2
    neighbours = stops[np.argsort(starts, kind="stable")][np.repeat(between, graph.degrees)].reshape(-1, 2)
    points_mm = graph.points_mm.copy()
    for _ in range(_SMOOTHING_ROUNDS):
        points_mm[between] = points_mm[between] / 2 + points_mm[neighbours].sum(axis=1) / 4
    return SkeletonGraph(points_mm, graph.edges)


def _measure_end_extensions_mm(solid: Mask, graph: SkeletonGraph, spacing_mm: Sequence[float]) -> NDArray[np.float64]:
    """Compute the distance from each end to the mask's last voxel.

    The distance is measured along the direction of the branch, to the centre of the last voxel inside.
    """
    ends = np.flatnonzero(graph.degrees == 1)
    from_mm = graph.points_mm[ends]
    directions = from_mm - graph.points_mm[_walk_inwards(graph, ends)]
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    padded, spacing = np.pad(solid, 1), np.asarray(spacing_mm)
    beyond_mm, inside = np.zeros(len(ends)), np.ones(len(ends), bool)
    for distance_mm in itertools.count(0.0, spacing.min() / 4):
        voxels = np.rint((from_mm + distance_mm * directions) / spacing).astype(np.intp)
        inside &= padded[tuple((np.clip(voxels, -1, solid.shape) + 1).T)]
        if not inside.any():
            break
        along_mm = ((voxels * spacing - from_mm) * directions).sum(axis=1)
        beyond_mm[inside] = np.maximum(beyond_mm, along_mm)[inside]
    return beyond_mm


def _walk_inwards(graph: SkeletonGraph, ends: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the point ``_DIRECTION_EDGES`` edges from each end.

    On a shorter branch it is the branch point or the other end.
    """
    starts, stops = graph.directed_edges
    sums = np.zeros(len(graph.points_mm), np.intp)
    np.add.at(sums, starts, stops)
    previous, current = ends, sums[ends]
    for _ in range(_DIRECTION_EDGES - 1):
        # The next of two neighbours is their sum minus the previous one.
        following = np.where(graph.degrees[current] == 2, sums[current] - previous, current)
        previous, current = current, following
    return current
