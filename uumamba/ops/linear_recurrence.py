r"""Linear recurrence ``h_l = a_l h_{l-1} + x_l``, computed in parallel chunks.

The gradient of a linear recurrence is a linear recurrence in the opposite direction. One autograd function computes
both directions, so the recurrence can be differentiated any number of times.

Layout: ``(steps, chunks, *rest)``; element ``[t, k]`` is position ``k * steps + t`` of the sequence. The same step of
all chunks is one contiguous row.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from uumamba.ops.function_transforms import is_transformed


def linear_recurrence(a: Tensor, x: Tensor) -> Tensor:
    r"""Return all states of the recurrence, which starts from zero.

    .. math:: h_l = a_l h_{l-1} + x_l, \qquad h_{-1} = 0

    Three phases. First: compute the end state of each chunk from a zero start, and the product of its decays. Second:
    compute the start state of each chunk from these, one chunk after the other. Third: compute each chunk again from
    its start state. There is no division by a decay, so strong decay gives zeros and not NaN.

    Args:
        a: decays, ``(steps, chunks, *rest)``.
        x: inputs of the same shape.

    Example:
        >>> a, x = torch.full((2, 2), 0.5), torch.ones(2, 2)    # two chunks of two steps
        >>> linear_recurrence(a, x).t().flatten()               # 1, 1 + 1/2, 1 + 3/4, 1 + 7/8
        tensor([1.0000, 1.5000, 1.7500, 1.8750])
    """
    if is_transformed((a, x)) or torch.compiler.is_exporting():
        return _compute_by_operators(a, x)
    return cast(Tensor, _Recurrence.apply(a, x, False))  # type: ignore[no-untyped-call]  # torch does not type apply


def _compute_by_operators(a: Tensor, x: Tensor) -> Tensor:
    """Compute the same from operators that have every derivative and batching rule."""
    decays, inputs, start = a.unbind(), x.unbind(), [torch.zeros_like(x[0, 0])]
    if a.shape[1] > 1:
        end, total_decay = inputs[0], decays[0]
        for a_t, x_t in zip(decays[1:], inputs[1:], strict=True):
            end, total_decay = x_t + a_t * end, total_decay * a_t
        for chunk in range(a.shape[1] - 1):
            start.append(end[chunk] + total_decay[chunk] * start[-1])
    states = [torch.stack(start)]
    for a_t, x_t in zip(decays, inputs, strict=True):
        states.append(x_t + a_t * states[-1])
    return torch.stack(states[1:])


class _Recurrence(Function):
    """Recurrence in both directions.

    Forward ``h_l = a_l h_{l-1} + x_l``, with ``reverse`` ``g_l = a_{l+1} g_{l+1} + x_l``.
    """

    @staticmethod
    def forward(a: Tensor, x: Tensor, reverse: bool) -> Tensor:
        out = torch.empty_like(x)
        if reverse:
            after_chunk = torch.cat([a[0, 1:], torch.zeros_like(a[0, :1])])
            decays = [after_chunk, *a.unbind()[:0:-1]]
            _sweep(decays, x.unbind()[::-1], out.unbind()[::-1], range(a.shape[1])[::-1])
        else:
            _sweep(a.unbind(), x.unbind(), out.unbind(), range(a.shape[1]))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.reverse = inputs[2]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        a, states = ctx.saved_tensors
        gradient = _Recurrence.apply(a, grad.contiguous(), not ctx.reverse)  # type: ignore[no-untyped-call]  # as above
        forwards, backwards = (gradient, states) if ctx.reverse else (states, gradient)
        return backwards * _previous(forwards), gradient, None


def _sweep(a: Sequence[Tensor], x: Sequence[Tensor], out: Sequence[Tensor], chunks: Sequence[int]) -> None:
    """Write all states to ``out``, in the given order."""
    start = torch.zeros_like(x[0])
    if len(chunks) > 1:
        end, total_decay = x[0].clone(), a[0].clone()
        for a_t, x_t in zip(a[1:], x[1:], strict=True):
            torch.addcmul(x_t, a_t, end, out=end)
            total_decay.mul_(a_t)
        for chunk, following in pairwise(chunks):
            torch.addcmul(end[chunk], total_decay[chunk], start[chunk], out=start[following])
    state = start
    for a_t, x_t, out_t in zip(a, x, out, strict=True):
        state = torch.addcmul(x_t, a_t, state, out=out_t)


def _previous(h: Tensor) -> Tensor:
    """Return ``h_{l-1}`` at every position, 0 before the first."""
    before_chunk = torch.cat([torch.zeros_like(h[-1:, :1]), h[-1:, :-1]], dim=1)
    return torch.cat([before_chunk, h[:-1]])
