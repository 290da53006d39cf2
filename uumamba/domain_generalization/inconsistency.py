"""Per-sample gradients of a linear head, and the two terms of their inconsistency between domains."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LinearHeadGradients:
    r"""Per-sample gradients of a linear head in closed form, kept as their two factors.

    .. math:: G^W_i = e_i \otimes h_i, \qquad G^b_i = e_i, \qquad e_i = \mathrm{softmax}(z_i) - \mathrm{onehot}(y_i)

    for the cross entropy of each sample i, not divided by the number of samples. Moments are products of
    ``(classes, samples)`` with ``(samples, width)`` matrices, so memory grows with samples and with weights, not with
    their product. Everything can be differentiated once in the features and logits.

    Attributes:
        errors: e, ``(samples, classes)``.
        features: h, the head's input, ``(samples, width)``.
        bias: the head has a bias.

    Example:
        >>> found = LinearHeadGradients.of(torch.zeros(1, 2), torch.tensor([[3.0]]), torch.tensor([0]))
        >>> found.per_sample()["weight"]  # (1/2 - 1) * 3 and (1/2) * 3
        tensor([[[-1.5000],
                 [ 1.5000]]])
    """

    errors: Tensor
    features: Tensor
    bias: bool = True

    @classmethod
    def of(cls, logits: Tensor, features: Tensor, label: Tensor, *, bias: bool = True) -> "LinearHeadGradients":
        """Compute e from logits ``(samples, classes)``, features ``(samples, width)`` and classes ``(samples,)``.

        Half precision is computed in float32, where squares of squares do not underflow.
        """
        logits, features = _full_precision(logits), _full_precision(features)
        return cls(logits.softmax(1) - F.one_hot(label.long(), logits.shape[1]), features, bias)

    def per_sample(self) -> dict[str, Tensor]:
        """Return the gradients: ``weight (samples, classes, width)``, and ``bias (samples, classes)``."""
        weight = self.errors[:, :, None] * self.features[:, None]
        return {"weight": weight, "bias": self.errors} if self.bias else {"weight": weight}

    def mean(self) -> Tensor:
        """Return the mean over samples, ``(entries,)``, row by row with the bias at the row's end."""
        return (self.errors.T @ self._with_ones(self.features)).flatten() / len(self.errors)

    def second_moment(self) -> Tensor:
        """Return the mean over samples of each entry's square, in the order of :meth:`mean`."""
        return (self.errors.square().T @ self._with_ones(self.features.square())).flatten() / len(self.errors)

    def _with_ones(self, features: Tensor) -> Tensor:
        return F.pad(features, (0, 1), value=1.0) if self.bias else features


def variance_gap(source: LinearHeadGradients, target: LinearHeadGradients) -> Tensor:
    r"""Return the distance between the variances of two sets of gradients, a scalar.

    .. math::
        \mu = \mathrm{mean}_i\, G_i(x), \quad v_s = \mathrm{mean}_i (G_i(x) - \mu)^2, \quad
        v_t = \mathrm{mean}_i (G_i(\tilde x) - \mu)^2, \quad \bar v = \tfrac12 (v_s + v_t)

    .. math::
        \mathrm{gap} = \tfrac12 \sum_{d \in \{s, t\}} \mathrm{mean}_k (v_{d,k} - \bar v_k)^2
            = \tfrac14\, \mathrm{mean}_k (v_{s,k} - v_{t,k})^2

    over the entries k of all tensors of the head together. Nothing is detached: the gradient flows through both
    variances and the mean. Both are about the source's mean, so a shift of the mean counts as variance. Two equal sets
    give 0; a set of one sample has the variance 0 about itself.

    Args:
        source: gradients of the samples.
        target: gradients of their perturbed copies, of the same head.

    Example:
        >>> ones = torch.ones(2, 1)
        >>> source = LinearHeadGradients(torch.tensor([[1.0], [3.0]]), ones, bias=False)  # mean 2, variance 1
        >>> target = LinearHeadGradients(torch.tensor([[2.0], [6.0]]), ones, bias=False)  # about 2: (0 + 16) / 2
        >>> variance_gap(source, target)  # (1 - 8)^2 / 4
        tensor(12.2500)

    References:
        Shin et al., *Unknown Domain Inconsistency Minimization for Domain Generalization*, ICLR 2024, arXiv:2403.07329.
        Rame et al., *Fishr: Invariant Gradient Variances for Out-of-Distribution Generalization*, ICML 2022,
        arXiv:2109.02934.
        Differs from Fishr: the target's variance is about the source's mean, as in UDIM's code.
    """
    mu = source.mean()
    gap = source.second_moment() - target.second_moment() - 2 * mu * (mu - target.mean())
    return gap.square().mean() / 4


def gradient_norm(target: LinearHeadGradients) -> Tensor:
    r"""Return the mean squared norm of the gradients, each tensor's divided by its number of entries, a scalar.

    .. math:: \sum_{p \in \{W, b\}} \frac{\mathrm{mean}_i \lVert G^p_i(\tilde x) \rVert_2^2}{\dim p}
        = \mathrm{mean}_i\, \lVert e_i \rVert^2 \Big( \frac{\lVert h_i \rVert^2}{K D} + \frac{1}{K} \Big)

    for K classes and features of width D.

    Example:
        >>> found = LinearHeadGradients(torch.tensor([[2.0]]), torch.tensor([[1.5, 2.0]]))  # weight (3, 4), bias 2
        >>> gradient_norm(found)  # 25 / 2 + 4
        tensor(16.5000)
    """
    of_weight = target.features.square().sum(1) / target.features.shape[1]
    total = of_weight + 1 if target.bias else of_weight
    return (target.errors.square().mean(1) * total).mean()


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
