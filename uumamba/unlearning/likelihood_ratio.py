"""Likelihood-ratio membership attack with shadow models (LiRA), for small data."""

from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Normal

from uumamba.runtime.errors import require
from uumamba.runtime.options import check_options
from uumamba.unlearning.per_sample_loss import read_valid_classes

LEAST_DEVIATION = 1e-6


def logit_confidence(logits: Tensor, label: Tensor) -> Tensor:
    r"""Confidence in the true class on the logit scale.

    .. math:: \phi = \log \frac{p_y}{1 - p_y} = z_y - \log \sum_{k \ne y} e^{z_k}

    The confidences of a sample under many networks are close to a normal distribution. For all samples of a data set,
    call ``collect_losses(net, batches, per_sample_loss=logit_confidence)``.

    Args:
        logits: ``(batch, classes)``.
        label: ``(batch,)``.

    Returns:
        ``(batch,)`` in float64.

    Raises:
        UsageError: the logits are no single prediction per sample, or a label is no class.

    Example:
        >>> logit_confidence(torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([1]))  # p = 1/3, so log 1/2
        tensor([-0.6931], dtype=torch.float64)
    """
    require(
        logits.ndim == 2 and logits.shape[1] > 1,
        "logits",
        got=f"shape {tuple(logits.shape)}",
        expected="(batch, classes) with at least two classes",
    )
    classes, _ = read_valid_classes(logits, label, None)
    logits = logits.double()
    others = logits.scatter(1, classes[:, None], -torch.inf)
    return logits.gather(1, classes[:, None])[:, 0] - others.logsumexp(1)


@check_options
def likelihood_ratio_scores(
    confidence: Tensor,
    shadow_confidence: Tensor,
    is_member: Tensor,
    *,
    mode: Literal["online", "offline"] = "online",
    variance: Literal["sample", "shared"] = "sample",
) -> Tensor:
    r"""Membership score of each sample, high for members.

    .. math::
        \text{online:}\quad & \log N(\phi;\ \mu_\mathrm{in}, \sigma_\mathrm{in}^2)
            - \log N(\phi;\ \mu_\mathrm{out}, \sigma_\mathrm{out}^2) \\
        \text{offline:}\quad & (\phi - \mu_\mathrm{out}) / \sigma_\mathrm{out}

    with mean and standard deviation of a sample's confidence over the shadow models whose training sets hold it (in) or
    do not (out). The offline score orders samples as the paper's probability does, without its saturation, and needs no
    shadow model that saw the sample. Pass the scores of members and non-members to :func:`attack_by_score`.

    Args:
        confidence: :math:`\phi` of the attacked network, ``(samples,)``, from :func:`logit_confidence`.
        shadow_confidence: that of shadow models, ``(models, samples)``.
        is_member: whether the model's training set holds the sample, ``(models, samples)``.
        mode: ``"online"`` or ``"offline"``.
        variance: ``"sample"``, or ``"shared"`` by all samples for few (say, below 64) shadow models. Deviations are at
            least 1e-6.

    Returns:
        ``(samples,)`` in float64.

    Raises:
        UsageError: shapes do not fit, a confidence is not finite, or a sample has fewer than two shadow models of
            a side that the mode needs.

    Example:
        >>> shadow = torch.tensor([[4.0], [6.0], [0.0], [2.0]])
        >>> is_member = torch.tensor([[True], [True], [False], [False]])
        >>> score = likelihood_ratio_scores(torch.tensor([4.0]), shadow, is_member)
        >>> round(score.item(), 6)  # (3^2 - 1^2) / (2 * variance 2)
        2.0

    References:
        Carlini et al., *Membership Inference Attacks From First Principles*, S&P 2022, arXiv:2112.03570.
        Differs from the paper: a shared variance is that around each sample's mean, in its code around the common mean;
        the offline score is not passed through the normal distribution function; one query per sample.
    """
    _check_shapes(confidence, shadow_confidence, is_member)
    phi, shadow, member = confidence.double().cpu(), shadow_confidence.double().cpu(), is_member.bool().cpu()
    out = _fit(shadow, ~member, "out of", variance)
    if mode == "offline":
        return (phi - out.mean) / out.stddev
    inside = _fit(shadow, member, "in", variance)
    return inside.log_prob(phi) - out.log_prob(phi)


def _fit(shadow: Tensor, chosen: Tensor, side: str, variance: str) -> Normal:
    """Fit a normal distribution per sample to the chosen models' confidences."""
    count = chosen.sum(0)
    least = int(count.argmin())
    require(
        count[least] >= 2,
        "is_member",
        got=f"{int(count[least])} shadow models with sample {least} {side} their training set",
        expected="at least 2 for each sample",
        fix='train more shadow models on random halves, or use mode="offline"',
    )
    mean = shadow.masked_fill(~chosen, 0).sum(0) / count
    squares = (shadow - mean).square().masked_fill(~chosen, 0).sum(0)
    free = count - 1
    if variance == "shared":
        squares, free = squares.sum().expand_as(squares), free.sum().expand_as(free)
    return Normal(mean, (squares / free).sqrt().clamp(min=LEAST_DEVIATION))


def _check_shapes(confidence: Tensor, shadow: Tensor, is_member: Tensor) -> None:
    fits = confidence.ndim == 1 and shadow.ndim == 2 and shadow.shape == is_member.shape
    require(
        fits and shadow.shape[1] == len(confidence) > 0,
        "shadow_confidence",
        got=f"shapes {tuple(confidence.shape)}, {tuple(shadow.shape)} and {tuple(is_member.shape)}",
        expected="(samples,), (models, samples) and (models, samples)",
    )
    require(
        confidence.isfinite().all() and shadow.isfinite().all(),
        "confidence",
        got="a value that is not finite",
        expected="finite confidences",
    )
