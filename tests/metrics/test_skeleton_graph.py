import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import cdist

from uumamba.metrics import betti_numbers
from uumamba.metrics.skeleton_graph import SkeletonGraph, skeleton_graph

SPACING_MM = (0.5, 0.7, 1.3)
noise = arrays(np.bool_, st.tuples(*[st.integers(1, 5)] * 3), elements=st.booleans(), fill=st.nothing())


def count_parts(graph: SkeletonGraph) -> int:
    """Count the connected parts of a graph."""
    n = len(graph.points_mm)
    if n == 0:
        return 0
    matrix = coo_array((np.ones(len(graph.edges)), tuple(graph.edges.T)), shape=(n, n))
    return int(connected_components(matrix, directed=False)[0])


def shortest_tree_mm(mask: np.ndarray) -> float:
    """Length of the minimum spanning forest over all 26-neighbours."""
    voxels = np.argwhere(mask)
    if len(voxels) == 0:
        return 0.0
    lengths_mm = cdist(voxels * np.array(SPACING_MM), voxels * np.array(SPACING_MM))
    lengths_mm[cdist(voxels, voxels, "chebyshev") > 1] = 0
    return float(minimum_spanning_tree(lengths_mm).sum())


@given(noise)
def test_the_graph_has_one_part_for_each_part_and_one_loop_for_each_tunnel(mask: np.ndarray) -> None:
    graph = skeleton_graph(mask, spacing_mm=SPACING_MM)
    parts, tunnels, _ = betti_numbers(mask)
    assert len(graph.points_mm) == mask.sum()
    assert count_parts(graph) == parts
    assert len(graph.edges) - len(graph.points_mm) + parts == tunnels


@given(noise)
def test_without_tunnels_the_graph_is_the_shortest_tree(mask: np.ndarray) -> None:
    length_mm = skeleton_graph(mask, spacing_mm=SPACING_MM).edge_lengths_mm.sum()
    if betti_numbers(mask)[1] == 0:
        assert length_mm == pytest.approx(shortest_tree_mm(mask), rel=1e-12)
    else:
        assert length_mm > shortest_tree_mm(mask)


def test_a_crossing_of_four_branches_around_a_square_closes_no_loop() -> None:
    crossing = np.zeros((1, 6, 6), bool)
    for n in range(6):
        crossing[0, n, n] = crossing[0, n, 5 - n] = True
    assert crossing[0, 2:4, 2:4].all()
    graph = skeleton_graph(crossing, spacing_mm=(1, 1, 1))
    # Four branches of two diagonal steps, and three of the square's four sides.
    assert graph.edge_lengths_mm.sum() == pytest.approx(8 * np.sqrt(2) + 3, rel=1e-12)


def test_a_ring_around_one_voxel_keeps_its_loop() -> None:
    diamond = np.zeros((1, 3, 3), bool)
    diamond[0, 1, ::2] = diamond[0, ::2, 1] = True
    graph = skeleton_graph(diamond, spacing_mm=(1, 1, 1))
    assert graph.edge_lengths_mm.tolist() == pytest.approx([np.sqrt(2)] * 4, rel=1e-12)
    assert graph.degrees.tolist() == [2, 2, 2, 2]


def test_points_are_voxel_centres_in_millimetres() -> None:
    pair = np.zeros((2, 2, 2), bool)
    pair[0, 0, 0] = pair[1, 1, 1] = True
    graph = skeleton_graph(pair, spacing_mm=(1, 2, 2))
    assert graph.points_mm.tolist() == [[0, 0, 0], [1, 2, 2]]
    assert graph.edge_lengths_mm.tolist() == [3.0]
    assert graph.directed_edges.tolist() == [[0, 1], [1, 0]]


def test_an_empty_skeleton_is_an_empty_graph() -> None:
    graph = skeleton_graph(np.zeros((2, 3, 4), bool), spacing_mm=(1, 1, 1))
    assert graph.points_mm.shape == (0, 3)
    assert graph.edges.shape == (0, 2)
