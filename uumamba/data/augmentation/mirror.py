"""Mirroring."""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from uumamba.data.augmentation.parameters import Drawn, Values, check_probability
from uumamba.runtime.errors import require


class Mirror:
    """Flip image and label along each given axis, independently of the others.

    Where an axis runs from the patient's left to the right, and structures have sides, a flip makes right ones of left
    ones; ``swaps`` then exchanges their labels, so that a mirrored right kidney is labelled as a left one.

    Args:
        dimensions: spatial dimensions of the patch.
        axes: spatial axes that may be flipped, counted in the patch's order (0 is Y in 2-D, Z in 3-D); empty for none.
        probability: of each axis being flipped.
        swaps: by axis, pairs of label values from 0 to 255 that a flip along it exchanges.

    Raises:
        UsageError: an axis does not exist or is named twice, a swap's axis is not one of them, a label is exchanged
            twice, or the probability is invalid.
    """

    name = "mirror"

    def __init__(
        self,
        *,
        dimensions: int,
        axes: Sequence[int] = (),
        probability: float = 0.5,
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
            expected=f"some of the mirrored axes {tuple(axes)}",
        )
        self.axes = tuple(axes)
        self.tables = {axis: _exchange_table(pairs) for axis, pairs in swaps.items()}
        self.probability = check_probability("mirror_probability", probability)

    def draw(self, generator: Generator) -> Values | None:
        """Draw the axes that are flipped.

        ``flip`` has one truth value an axis of ``axes``; None where no axis is flipped.
        """
        flip = torch.rand(len(self.axes), generator=generator) < self.probability
        return {"flip": flip} if flip.any() else None

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """Flip the drawn samples; the given tensors are not written to."""
        if not drawn:
            return image, label
        image, label = image.clone(), label.clone()
        for row, flip in zip(drawn.rows, drawn.values["flip"].tolist(), strict=True):
            flipped = [axis for axis, wanted in zip(self.axes, flip, strict=True) if wanted]
            for array in (image, label):
                array[row] = array[row].flip([1 + axis for axis in flipped])
            for axis in [axis for axis in flipped if axis in self.tables]:
                label[row] = self.tables[axis].to(label)[label[row].long()]
        return image, label


def _exchange_table(pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Table of 256 label values with each pair exchanged."""
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
