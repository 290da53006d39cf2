"""Mirror averaging of predictions."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from torch import Tensor

from uumamba.runtime.errors import require


def mirrored_mean(
    predict: Callable[[Tensor], Tensor],
    axes: Sequence[int],
    *,
    swaps: Mapping[int, Sequence[tuple[int, int]]] | None = None,
) -> Callable[[Tensor], Tensor]:
    r"""Average a function over all combinations of mirrored axes.

    .. math:: \bar{p}(x) = \frac{1}{2^n} \sum_{A \subseteq \mathrm{axes}} F_A\, p(F_A\, x)

    with the flip :math:`F_A` along the axes A. Each prediction is mirrored back. A mirrored right kidney is a left one
    for a network with classes for both sides; ``swaps`` exchanges the probabilities of the two classes when the
    prediction is mirrored back.

    Use only axes that training mirrored: with other axes a network lost 40 points of RV Dice.

    Args:
        predict: from ``(B, C, *S)`` to probabilities ``(B, K, *S)``.
        axes: spatial axes, counted from 0.
        swaps: by axis, pairs of classes that a flip exchanges.

    Returns:
        The averaged function; without axes, ``predict`` itself.

    Raises:
        UsageError: an axis is negative or given twice, or the axis of a swap is not mirrored.

    Example:
        >>> import torch
        >>> first_column = torch.tensor([1.0, 0.0])
        >>> mirrored_mean(lambda x: x * first_column, axes=[1])(torch.ones(1, 1, 1, 2))
        tensor([[[[0.5000, 0.5000]]]])
    """
    require(
        len(set(axes)) == len(axes) and min(axes, default=0) >= 0,
        "axes",
        got=tuple(axes),
        expected="different spatial axes, counted from 0",
    )
    swaps = swaps or {}
    require(set(swaps) <= set(axes), "swaps", got=sorted(swaps), expected=f"some of the mirrored axes {tuple(axes)}")
    flips = [flip for size in range(1, len(axes) + 1) for flip in combinations(axes, size)]

    def mean(x: Tensor) -> Tensor:
        total = predict(x)
        for flip in flips:
            dims = [axis + 2 for axis in flip]
            found = predict(x.flip(dims)).flip(dims)
            for axis in filter(swaps.__contains__, flip):
                found = _exchange(found, swaps[axis])
            total = total + found
        return total / (len(flips) + 1)

    return mean if flips else predict


def _exchange(probabilities: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Exchange the channels of each pair in probabilities ``(B, K, *S)``."""
    order = list(range(probabilities.shape[1]))
    for first, second in pairs:
        order[first], order[second] = order[second], order[first]
    return probabilities[:, order]
