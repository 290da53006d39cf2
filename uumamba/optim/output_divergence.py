"""Kullback-Leibler divergence of a network's outputs."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from uumamba.runtime.errors import require
from uumamba.runtime.network import read_classes

Form = Literal["softmax", "sigmoid"]


@torch.no_grad()
def divergence(reference: Tensor, logits: Tensor, *, form: Form = "softmax", valid: Tensor | None = None) -> Tensor:
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
        valid: mask of the samples or voxels in the mean, ``(batch, 1, *spatial)``; None for all.

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
    if valid is not None:
        reference, logits = (each.masked_fill(~valid, 0) for each in (reference, logits))
    return average_valid(softened_divergence(reference, logits, form=form), valid).clamp_min(0)


def find_valid(label: Tensor, logits: Tensor, ignore_label: int | None) -> Tensor | None:
    """Find the samples or voxels that are not ignored, ``(batch, 1, *spatial)``.

    None without ``ignore_label``.

    Args:
        label: classes, ``(batch, *spatial)`` or ``(batch, 1, *spatial)``.
        logits: ``(batch, classes, *spatial)``.
        ignore_label: label of samples or voxels to leave out.

    Example:
        >>> find_valid(torch.tensor([0, 255]), torch.zeros(2, 3), 255).tolist()
        [[True], [False]]
    """
    if ignore_label is None:
        return None
    return read_classes(label, ignore_label)[1].reshape(len(logits), 1, *logits.shape[2:])


def average_valid(values: Tensor, valid: Tensor | None) -> Tensor:
    """Average ``(batch, *spatial)`` values over valid ones; the others must be 0."""
    return values.mean() if valid is None else values.sum() / valid.sum().clamp_min(1)


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
