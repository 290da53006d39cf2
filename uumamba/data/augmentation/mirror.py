"""Mirroring of patches."""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from uumamba.data.augmentation.parameters import Drawn, SpatialTransform, Values
from uumamba.runtime.errors import require
from uumamba.runtime.options import NonNegativeInt, PositiveInt, Probability, check_options


class Mirror(SpatialTransform):
    """Random flips of image and label, independently along each axis.

    A flip along the axis from the patient's left to right turns left structures into right structures. ``swaps`` then
    exchanges their labels, so that a mirrored right kidney is labelled as a left kidney.

    Args:
        dimensions: spatial dimensions of the patch.
        axes: spatial axes that may be flipped, in the patch's order (0 is Y in 2-D, Z in 3-D); empty for none.
        probability: probability of a flip, per axis.
        swaps: pairs of label values from 0 to 255 that a flip exchanges, by axis.

    Raises:
        UsageError: an axis does not exist or is named twice, ``swaps`` names another axis, a label is exchanged twice,
            or the probability is invalid.
    """

    name = "mirror"

    @check_options
    def __init__(
        self,
        *,
        dimensions: PositiveInt,
        axes: Sequence[NonNegativeInt],
        probability: Probability,
        swaps: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        swaps = swaps or {}
        require(
            len(set(axes)) == len(axes) and set(axes) <= set(range(dimensions)),
            "mirror_axes",
            got=tuple(axes),
            expected=f"distinct axes from 0 to {dimensions - 1}",
        )
        require(
            swaps.keys() <= set(axes),
            "mirror_swaps",
            got=sorted(swaps),
            expected=f"a subset of the mirrored axes {tuple(axes)}",
        )
        self.axes = tuple(axes)
        self.tables = {axis: _make_exchange_table(pairs) for axis, pairs in swaps.items()}
        self.probability = probability

    def draw(self, generator: Generator) -> Values | None:
        """Draw ``flip``, one boolean per axis, or None without a flip."""
        flip = torch.rand(len(self.axes), generator=generator) < self.probability
        return {"flip": flip} if flip.any() else None

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Flip the drawn samples; the given tensors are unchanged."""
        if not drawn.rows:
            return image, label
        image, label = image.clone(), label.clone()
        for row, flip in zip(drawn.rows, drawn.values["flip"].tolist(), strict=True):
            flipped = [axis for axis, wanted in zip(self.axes, flip, strict=True) if wanted]
            for array in (image, label):
                array[row] = array[row].flip([1 + axis for axis in flipped])
            for axis in [axis for axis in flipped if axis in self.tables]:
                label[row] = self.tables[axis].to(label)[label[row].long()]
        return image, label


def _make_exchange_table(pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Make a table of 256 label values with exchanged pairs."""
    named = [value for pair in pairs for value in pair]
    require(
        len(set(named)) == len(named) and set(named) <= set(range(256)),
        "mirror_swaps",
        got=tuple(pairs),
        expected="pairs of labels from 0 to 255, each label once",
    )
    table = torch.arange(256)
    for first, second in pairs:
        table[first], table[second] = second, first
    return table
