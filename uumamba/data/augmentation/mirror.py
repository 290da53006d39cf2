"""Mirroring."""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor

from uumamba.data.augmentation.draws import Drawn, Values, check_probability


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
        ValueError: an axis does not exist or is named twice, a swap's axis is not one of them, a label is exchanged
            twice, or the probability makes no sense.
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
        if len(set(axes)) != len(axes) or any(axis not in range(dimensions) for axis in axes):
            raise ValueError(f"mirror_axes must be distinct axes from 0 to {dimensions - 1}, got {tuple(axes)}.")
        if not set(swaps or {}) <= set(axes):
            raise ValueError(f"mirror_swaps must be of mirrored axes {tuple(axes)}, got axes {sorted(swaps or {})}.")
        self.axes = tuple(axes)
        self.tables = {axis: _exchange(pairs) for axis, pairs in (swaps or {}).items()}
        self.probability = check_probability("mirror_probability", probability)

    def draw(self, generator: Generator) -> Values | None:
        """``flip``, one truth value an axis of ``axes``, or None where no axis is flipped."""
        flip = torch.rand(len(self.axes), generator=generator) < self.probability
        return {"flip": flip} if flip.any() else None

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """The batch with the drawn samples flipped; the given tensors are not written to."""
        if not drawn:
            return image, label
        return self._flip(image, drawn), self._swap(self._flip(label, drawn), drawn)

    def _flip(self, array: Tensor, drawn: Drawn) -> Tensor:
        flipped = array.clone()
        for row, flip in zip(drawn.rows, drawn.values["flip"].tolist(), strict=True):
            dims = [1 + axis for axis, wanted in zip(self.axes, flip, strict=True) if wanted]
            flipped[row] = array[row].flip(dims)
        return flipped

    def _swap(self, label: Tensor, drawn: Drawn) -> Tensor:
        for axis, table in self.tables.items():
            table, flips = table.to(label.device, label.dtype), drawn.values["flip"][:, self.axes.index(axis)].tolist()
            for row, flipped in zip(drawn.rows, flips, strict=True):
                if flipped:
                    label[row] = table[label[row].long()]
        return label


def _exchange(pairs: Sequence[tuple[int, int]]) -> Tensor:
    """A table of 256 label values with each pair exchanged."""
    named = [value for pair in pairs for value in pair]
    if len(set(named)) != len(named) or any(value not in range(256) for value in named):
        raise ValueError(f"mirror_swaps must exchange labels from 0 to 255, each once, got {tuple(pairs)}.")
    table = torch.arange(256)
    for first, second in pairs:
        table[first], table[second] = second, first
    return table
