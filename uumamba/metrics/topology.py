"""Betti numbers: parts, tunnels and cavities of a mask."""

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label as label_components

from uumamba.metrics.box import bounding_box
from uumamba.metrics.mask_checks import check_2d_or_3d, check_pair
from uumamba.types import Mask


def betti_numbers(mask: Mask) -> tuple[int, ...]:
    r"""Count the parts, tunnels and cavities of a mask.

    The result is ``(b0, b1, b2)``, or ``(b0, b1)`` in 2-D.

    .. math:: b_1 = b_0 + b_2 - \chi, \quad \chi = \sum_{d} (-1)^d\, n_d

    The foreground is 26-connected (8 in 2-D), the background 6-connected (4). Parts and cavities are connected
    components; a cavity is background that is not connected to the outside. The Euler characteristic counts the cells
    :math:`n_d` (corners, edges, faces, cubes) of the closed voxels and gives the tunnels. In 2-D a hole is a tunnel:
    :math:`b_1 = b_0 - \chi`. Outside the array is background. All numbers of an empty mask are 0.

    Args:
        mask: boolean array ``(Y, X)`` or ``(Z, Y, X)``, in any axis order.

    Raises:
        UsageError: the mask is not boolean or has neither two nor three axes.

    Example:
        >>> ring = np.ones((3, 3), bool)
        >>> ring[1, 1] = False
        >>> betti_numbers(ring)
        (1, 1)
        >>> shell = np.ones((3, 3, 3), bool)
        >>> shell[1, 1, 1] = False
        >>> betti_numbers(shell)
        (1, 0, 1)

    References:
        Kong & Rosenfeld, *Digital Topology: Introduction and Survey*, CVGIP 48(3), 1989.
        Differs from the paper: none.
    """
    check_2d_or_3d(mask)
    cut = mask[bounding_box(mask)]
    if cut.size == 0:
        return (0,) * mask.ndim
    parts = int(label_components(cut, np.ones((3,) * cut.ndim))[1])
    euler = _compute_euler_characteristic(cut)
    if cut.ndim == 2:
        return parts, parts - euler
    cavities = int(_label_background(cut).max()) - 1
    return parts, parts + cavities - euler, cavities


def betti_errors(prediction: Mask, label: Mask) -> tuple[float, ...]:
    r"""Absolute differences of the Betti numbers of two masks, in their order.

    .. math:: e_k = |b_k(P) - b_k(L)|

    One mask empty: the other's Betti numbers, which may be small, so report an overlap as well. Both empty: NaN for
    each.

    Args:
        prediction: boolean array ``(Y, X)`` or ``(Z, Y, X)``, in any axis order.
        label: boolean array of the same shape.

    Raises:
        UsageError: a mask is not boolean, the shapes differ, or have neither two nor three axes.

    Example:
        >>> label = np.ones((1, 7), bool)
        >>> broken = label.copy()
        >>> broken[0, 2] = broken[0, 4] = False
        >>> betti_errors(broken, label)
        (2.0, 0.0)

    References:
        Hu, Li, Samaras & Chen, *Topology-Preserving Deep Image Segmentation*, NeurIPS 2019, arXiv:1906.05404.
        Differs from the paper: Betti numbers of the whole mask instead of an average over random patches.
    """
    check_pair(prediction, label)
    check_2d_or_3d(prediction, "prediction")
    return errors_from_betti_numbers(betti_numbers(prediction), betti_numbers(label))


def errors_from_betti_numbers(found: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[float, ...]:
    """Compute Betti errors from precomputed numbers; NaN for two empty masks."""
    if found[0] == wanted[0] == 0:
        return (float("nan"),) * len(found)
    return tuple(float(abs(a - b)) for a, b in zip(found, wanted, strict=True))


def fill_cavities(mask: Mask) -> Mask:
    """Fill the cavities of a mask.

    A 2-D mask has none, since a hole is a tunnel.

    Args:
        mask: boolean array ``(Y, X)`` or ``(Z, Y, X)``, in any axis order.

    Example:
        >>> shell = np.ones((3, 3, 3), bool)
        >>> shell[1, 1, 1] = False
        >>> bool(fill_cavities(shell).all())
        True
    """
    filled = mask.copy()
    box = bounding_box(mask)
    if mask.ndim == 3 and filled[box].size:
        filled[box] = _label_background(filled[box])[1:-1, 1:-1, 1:-1] != 1
    return filled


def _label_background(mask: Mask) -> NDArray[np.int32]:
    """Label the connected components of the background, padded by one voxel.

    Labels are 0 in the mask, 1 outside, and larger in cavities.
    """
    return np.asarray(label_components(~np.pad(mask, 1))[0], np.int32)


def _compute_euler_characteristic(mask: Mask) -> int:
    """Count the cells of the closed voxels, negative for odd dimensions.

    A cell that is thin along an axis is between two voxels and belongs to the mask if either voxel does.
    """
    total = 0
    for thin in itertools.product((False, True), repeat=mask.ndim):
        cells = mask
        for axis in np.flatnonzero(thin):
            width = [(1, 1) if other == axis else (0, 0) for other in range(mask.ndim)]
            padded = np.moveaxis(np.pad(cells, width), axis, 0)
            cells = np.moveaxis(padded[1:] | padded[:-1], 0, axis)
        total += (-1) ** thin.count(False) * int(np.count_nonzero(cells))
    return total
