"""Postprocessing of label maps: removal of islands."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.ndimage import label as label_components

from uumamba.metrics import dice_coefficient
from uumamba.runtime.errors import require
from uumamba.runtime.painting import select_values
from uumamba.types import LabelMap, Mask

_SLAB_VOXELS = 2**22


@dataclass(frozen=True)
class LargestComponents:
    """Postprocessing that keeps the largest component of masks.

    First the union of all structures loses all components except the largest, then each structure of ``values`` does.
    Removed voxels become background. Voxels that touch at a corner are connected. Of two largest components the first
    in array order is kept.

    Args:
        union: apply to the union of all structures. Only for anatomy that is connected.
        values: label values of the structures to which it applies. Only for structures that have one part.

    Example:
        >>> label = np.array([[1, 0, 2, 2, 0, 1, 1]], np.uint8)
        >>> LargestComponents(union=True)(label)
        array([[0, 0, 2, 2, 0, 0, 0]], dtype=uint8)
        >>> LargestComponents(values=(1,))(label)
        array([[0, 0, 2, 2, 0, 1, 1]], dtype=uint8)

    References:
        Isensee et al., *nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation*,
        Nature Methods 2021, doi:10.1038/s41592-020-01008-z.
    """

    union: bool = False
    values: tuple[int, ...] = ()

    def __call__(self, label: LabelMap) -> LabelMap:
        """Return the label map without islands; the input is not changed.

        Args:
            label: ``(*grid)`` uint8.
        """
        kept = label.copy()
        if self.union:
            _remove_islands(kept[_find_hull(kept)])
        boxes = dict(enumerate(find_objects(kept) if self.values else [], start=1))
        for value in self.values:
            if boxes.get(value) is not None:
                _remove_islands(kept[boxes[value]], value)
        return kept


def keep_largest(mask: Mask) -> NDArray[np.bool_]:
    """Keep a mask's largest component.

    Voxels that touch at a corner are connected. An empty mask stays empty.

    Args:
        mask: boolean array of any shape.

    Example:
        >>> keep_largest(np.array([True, False, True, True]))
        array([False, False,  True,  True])
    """
    kept = mask.copy()
    _remove_islands(kept[_find_hull(kept.view(np.uint8))])
    return kept


def _find_hull(label: LabelMap) -> tuple[slice, ...]:
    """Return the box around all structures; without structures, of the whole array."""
    sides = zip(*filter(None, find_objects(label)), strict=True)
    return tuple(slice(min(each.start for each in side), max(each.stop for each in side)) for side in sides)


def _remove_islands(label: NDArray[Any], value: int | None = None) -> None:
    """Set a mask's voxels outside its largest component to 0.

    The array is changed. Numbers of components take four bytes a voxel, so the array is numbered in slabs of a few
    million voxels. Neighbours share a plane, which tells the numbers of a component in both.

    Args:
        label: the array.
        value: value of the mask; None for all but 0.
    """
    thickness = max(1, _SLAB_VOXELS // label[0].size)
    count, sizes, links, shared = 0, [np.zeros(1, dtype=np.int64)], [], None
    for parts, more in _number_components(label, thickness, value):
        if shared is not None:
            pairs = np.array([shared[shared > 0], parts[0][parts[0] > 0] + count])
            is_new = np.append(True, (pairs[:, 1:] != pairs[:, :-1]).any(axis=0))  # few of many neighbouring voxels
            links.append(pairs[:, is_new[: pairs.shape[1]]])
        sizes.append(np.bincount(parts[:thickness].ravel(), minlength=more + 1)[1:])
        shared = np.where(parts[-1] > 0, parts[-1] + count, 0)
        count += more
    roots = _join(count + 1, np.concatenate(links, axis=1)) if links else np.arange(count + 1)
    is_kept = roots == np.bincount(roots, weights=np.concatenate(sizes)).argmax()
    is_kept[0] = True  # other voxels
    first, passed = 0, 0
    for parts, more in [] if is_kept.all() else _number_components(label, thickness, value):
        is_kept_here = np.append(True, is_kept[passed + 1 : passed + 1 + more])
        label[first : first + thickness][~is_kept_here[parts[:thickness]]] = 0
        first, passed = first + thickness, passed + more


def _number_components(
    label: NDArray[Any], thickness: int, value: int | None
) -> Iterator[tuple[NDArray[np.int32], int]]:
    """Number and count the components of each slab.

    A slab ends with the first plane of the next one.
    """
    for first in range(0, len(label), thickness):
        part = label[first : first + thickness + 1]
        yield label_components(part if value is None else part == value, np.ones((3,) * label.ndim))


def _join(count: int, links: NDArray[np.int32]) -> NDArray[np.int32]:
    """Number the groups of linked numbers below ``count``.

    Groups are in the order of their first numbers.
    """
    from scipy.sparse import coo_array  # here, because small scans do not need it
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(links.shape[1], dtype=np.bool_), links), shape=(count, count))
    groups: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return groups


@dataclass(frozen=True)
class PostprocessChoice:
    """Postprocessing chosen on validation cases.

    Attributes:
        postprocess: the postprocessing with the highest Dice.
        dice: its mean Dice over cases and structures; NaN if no case has a structure.
        dice_without: the mean Dice without postprocessing.
        cases: number of cases.
    """

    postprocess: LargestComponents
    dice: float
    dice_without: float
    cases: int


def choose_postprocess(
    pairs: Iterable[tuple[LabelMap, LabelMap]],
    structures: Mapping[str, int],
    *,
    regions: Mapping[str, Sequence[int]] | None = None,
    ignore_label: int | None = None,
) -> PostprocessChoice:
    """Choose the postprocessing with the highest mean Dice on validation cases.

    The candidates are all combinations of the union and each structure. Of equals, the one that removes more is chosen:
    islands hardly change Dice, but surface distances.

    Args:
        pairs: prediction and label of each case, read once.
        structures: label value of each structure.
        regions: label values of each region; they are scored in place of the structures, and only the union may lose
            components, since regions overlap.
        ignore_label: value of voxels in the label that are left out of the scores; None if there are none.

    Raises:
        UsageError: there is no case.

    Example:
        >>> label = np.array([[1, 0, 0, 1, 1]], np.uint8)  # a structure of two parts
        >>> choose_postprocess([(label, label)], {"artery": 1}).postprocess
        LargestComponents(union=False, values=())
    """
    values = tuple(structures.values())
    scored = [(value,) for value in values] if regions is None else [tuple(each) for each in regions.values()]
    score = partial(_score_candidates, scored=scored, removes_each=regions is None, ignore_label=ignore_label)
    table = [score(prediction, label) for prediction, label in pairs]
    require(table, "pairs", got="no case", expected="at least one prediction with its label")
    dices = np.asarray(table)
    is_scored = np.any(~np.isnan(dices).all(axis=0), axis=(0, 1))
    scores = np.nanmean(dices[..., is_scored], axis=0) if is_scored.any() else np.zeros((2, 2, 0))
    by_union = scores.max(axis=1).mean(axis=1) if is_scored.any() else np.full(2, np.nan)
    union = int(by_union[1] >= by_union[0])
    removes = dict(zip(np.flatnonzero(is_scored), scores[union, -1] >= scores[union, 0], strict=True))
    chosen = tuple(value for index, value in enumerate(values) if regions is None and removes.get(index, False))
    without = float(scores[0, 0].mean()) if is_scored.any() else float("nan")
    return PostprocessChoice(LargestComponents(bool(union), chosen), float(by_union[union]), without, len(table))


def _score_candidates(
    prediction: LabelMap,
    label: LabelMap,
    *,
    scored: Sequence[Sequence[int]],
    removes_each: bool,
    ignore_label: int | None,
) -> NDArray[np.float64]:
    """Compute Dice by union (off, on), removal (off, on) and structure.

    Without ``removes_each`` removal is off only. Ignored voxels are predicted as well, so they are parts of components.
    """
    unions = (prediction, LargestComponents(union=True)(prediction))
    valid = None if ignore_label is None else label != ignore_label

    def score(found: LabelMap, values: Sequence[int], removes: bool) -> float:
        mask, reference = select_values(found, values), select_values(label, values)
        mask = keep_largest(mask) if removes else mask
        return dice_coefficient(mask if valid is None else mask & valid, reference)

    removals = (False, True) if removes_each else (False,)
    found = [[[score(each, values, removes) for values in scored] for removes in removals] for each in unions]
    return np.asarray(found)
