"""Mirroring."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from uumamba.data.augmentation.draws import Drawn, Values, check_probability


class Mirror:
    """Flip image and label along each given axis, independently of the others.

    Args:
        dimensions: spatial dimensions of the patch.
        axes: spatial axes that may be flipped, counted in the patch's order (0 is Y in 2-D, Z in 3-D); empty for none.
        probability: of each axis being flipped.

    Raises:
        ValueError: an axis does not exist or is named twice, or the probability makes no sense.
    """

    name = "mirror"

    def __init__(self, *, dimensions: int, axes: Sequence[int] = (), probability: float = 0.5) -> None:
        if len(set(axes)) != len(axes) or any(axis not in range(dimensions) for axis in axes):
            raise ValueError(f"mirror_axes must be distinct axes from 0 to {dimensions - 1}, got {tuple(axes)}.")
        self.axes = tuple(axes)
        self.probability = check_probability("mirror_probability", probability)

    def draw(self, generator: Generator) -> Values | None:
        """``flip``, one truth value an axis of ``axes``, or None where no axis is flipped."""
        flip = torch.rand(len(self.axes), generator=generator) < self.probability
        return {"flip": flip} if flip.any() else None

    def apply(self, image: Tensor, label: Tensor, drawn: Drawn) -> tuple[Tensor, Tensor]:
        """The batch with the drawn samples flipped; the given tensors are not written to."""
        if not drawn:
            return image, label
        return self._flip(image, drawn), self._flip(label, drawn)

    def _flip(self, array: Tensor, drawn: Drawn) -> Tensor:
        flipped = array.clone()
        for row, flip in zip(drawn.rows, drawn.values["flip"].tolist(), strict=True):
            dims = [1 + axis for axis, wanted in zip(self.axes, flip, strict=True) if wanted]
            flipped[row] = array[row].flip(dims)
        return flipped
