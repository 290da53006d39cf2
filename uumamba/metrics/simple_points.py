"""Simple points: voxels whose removal preserves the topology."""

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.uint32]

# Bit 9 (dz + 1) + 3 (dy + 1) + (dx + 1) of a code is the neighbour at (dz, dy, dx); bit 13 is the voxel itself.
OFFSETS = tuple(itertools.product((-1, 0, 1), repeat=3))
CENTRE = OFFSETS.index((0, 0, 0))


def _encode_bits(wanted: NDArray[np.bool_]) -> np.uint32:
    return np.uint32(sum(1 << int(bit) for bit in np.flatnonzero(wanted)))


_DISTANCES = np.abs(OFFSETS).sum(axis=1)
_FACES = _encode_bits(_DISTANCES == 1)
_FACES_AND_EDGES = _encode_bits((_DISTANCES == 1) | (_DISTANCES == 2))
# For each axis: its stride in bits, and the bits that may step down or up without wrapping around the cube.
_STEPS = tuple(
    (np.uint32(stride), _encode_bits(along > -1), _encode_bits(along < 1))
    for stride, along in zip((9, 3, 1), np.transpose(OFFSETS), strict=True)
)


def is_simple(codes: Codes) -> NDArray[np.bool_]:
    """Test neighbourhoods for simple points, with 26-connected foreground and 6-connected background.

    A voxel is simple if its foreground neighbours are connected without it (26-connected in the cube around it) and its
    background face neighbours are connected as well (6-connected through the 18 neighbours that share a face or edge).
    Both tests are flood fills of a 27-voxel cube in the bits of one integer, for all voxels at once. In a 2-D mask they
    are the rule for 8 and 4 neighbours.

    Args:
        codes: ``(n,)``, one 27-bit code for each voxel; see ``OFFSETS``. The voxel's own bit must be unset.

    Example:
        >>> left, right, next_to_right = 1 << 12, 1 << 14, 1 << 17
        >>> is_simple(np.array([left, left | right, right | next_to_right], np.uint32))
        array([ True, False,  True])

    References:
        Bertrand & Malandain, *A new characterization of three-dimensional simple points*, Pattern Recognition Letters
        15(2), 1994.
        Differs from the paper: none.
    """
    background = ~codes & _FACES_AND_EDGES
    return _is_connected(codes, codes, _grow_by_26) & _is_connected(background, background & _FACES, _grow_by_6)


def has_two_neighbours(codes: Codes) -> NDArray[np.bool_]:
    """Test neighbourhoods for at least two voxels.

    End points of a curve have one neighbour, isolated voxels none.
    """
    return (codes & (codes - np.uint32(1))) != 0


def _is_connected(inside: Codes, wanted: Codes, grow: Callable[[Codes], Codes]) -> NDArray[np.bool_]:
    """Test whether a flood fill inside the mask connects all wanted voxels.

    Without any wanted voxel the result is false.
    """
    reached = wanted & (~wanted + np.uint32(1))
    while True:
        grown = grow(reached) & inside
        if np.array_equal(grown, reached):
            return (wanted != 0) & (wanted & ~reached == 0)
        reached = grown


def _grow_by_6(codes: Codes) -> Codes:
    grown = codes
    for stride, may_step_down, may_step_up in _STEPS:
        grown = grown | (codes & may_step_down) >> stride | (codes & may_step_up) << stride
    return grown


def _grow_by_26(codes: Codes) -> Codes:
    for stride, may_step_down, may_step_up in _STEPS:
        codes = codes | (codes & may_step_down) >> stride | (codes & may_step_up) << stride
    return codes
