"""Kullback-Leibler divergence of a network's outputs."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.runtime.errors import require

Form = Literal["softmax", "sigmoid"]


@torch.no_grad()
def divergence(reference: Tensor, logits: Tensor, *, form: Form = "softmax") -> Tensor:
    r"""Kullback-Leibler divergence of a network's outputs from a reference.

    .. math:: \frac{1}{N} \sum_n \sum_c p_{nc} \log \frac{p_{nc}}{q_{nc}}, \qquad
              p = \mathrm{softmax}(\mathrm{reference}),\ q = \mathrm{softmax}(\mathrm{logits})

    summed over classes and averaged over samples, voxels or tokens, so it depends neither on the batch size nor on the
    number of voxels. The sigmoid form takes each channel for a probability of its own and adds both its outcomes.
    A class with probability 0 in the reference, such as one masked by ``-inf``, adds 0. In float32 or better.

    Args:
        reference: logits ``(batch, classes, *spatial)``.
        logits: of the same shape, to compare with the reference.
        form: maps logits to probabilities.

    Returns:
        A scalar without a gradient, not negative.

    Raises:
        UsageError: shapes differ, or softmax has a single class.

    Example:
        >>> certain, uncertain = torch.tensor([[100.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> divergence(certain, uncertain)  # log 2
        tensor(0.6931)
    """
    shape, found = tuple(reference.shape), tuple(logits.shape)
    require(shape == found and len(shape) > 1, "logits", got=found, expected=f"(batch, classes, ...) like {shape}")
    require(form != "softmax" or shape[1] > 1, "form", got=form, expected="sigmoid for logits of one channel")
    return softened_divergence(reference, logits, form=form).mean().clamp_min(0)


def softened_divergence(
    reference: Tensor, logits: Tensor, *, temperature: float = 1.0, form: Form = "softmax"
) -> Tensor:
    r"""Divergence of softened outputs from a reference, per sample or voxel.

    .. math:: \tau^2\, \mathrm{KL}(\mathrm{softmax}(\mathrm{reference} / \tau) \,\Vert\, \mathrm{softmax}(z / \tau))

    The sum is over classes, one value per sample or voxel, in at least float32. Logarithms are taken of logits and
    never of probabilities, which underflow.

    Args:
        reference: ``(batch, classes, *spatial)``, without a gradient.
        logits: z, of the same shape.
        temperature: :math:`\tau`; its square keeps the gradient's size nearly independent of it.
        form: maps logits to probabilities.

    Returns:
        ``(batch, *spatial)``.

    Example:
        >>> softened_divergence(torch.tensor([[99.0, 0.0]]), torch.tensor([[0.0, 0.0]]))  # log 2
        tensor([0.6931])
    """
    then, now = (
        tensor.to(torch.promote_types(tensor.dtype, torch.float32)) / temperature for tensor in (reference, logits)
    )
    if form == "softmax":
        terms = _divergence_terms(then.log_softmax(1), now.log_softmax(1))
    else:
        terms = _divergence_terms(F.logsigmoid(then), F.logsigmoid(now))
        terms = terms + _divergence_terms(F.logsigmoid(-then), F.logsigmoid(-now))
    return temperature**2 * terms.sum(1)


def _divergence_terms(log_then: Tensor, log_now: Tensor) -> Tensor:
    probability = log_then.exp()
    return torch.where(probability == 0, 0.0, probability * (log_then - log_now))
