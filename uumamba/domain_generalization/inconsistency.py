"""Per-sample gradients of a linear head, and UDIM's two inconsistency terms."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class LinearHeadGradients:
    r"""Per-sample gradients of a linear head, stored as two factors.

    .. math:: G^W_i = e_i \otimes h_i, \qquad G^b_i = e_i, \qquad e_i = \mathrm{softmax}(z_i) - \mathrm{onehot}(y_i)

    for the cross entropy of each sample i, not divided by the number of samples. Moments are products of
    ``(classes, samples)`` with ``(samples, width)`` matrices, so memory grows with the number of samples and the number
    of weights, not with their product. All results are differentiable once in features and logits.

    Attributes:
        errors: e, ``(samples, classes)``.
        features: h, the head's input, ``(samples, width)``.
        bias: True if the head has a bias.

    Example:
        >>> gradients = LinearHeadGradients.from_logits(torch.zeros(1, 2), torch.tensor([[3.0]]), torch.tensor([0]))
        >>> gradients.per_sample()["weight"]  # (1/2 - 1) * 3 and (1/2) * 3
        tensor([[[-1.5000],
                 [ 1.5000]]])
    """

    errors: Tensor
    features: Tensor
    bias: bool = True

    @classmethod
    def from_logits(
        cls, logits: Tensor, features: Tensor, label: Tensor, *, bias: bool = True
    ) -> "LinearHeadGradients":
        """Compute the errors e from logits and labels.

        Half precision is converted to float32, where fourth powers do not underflow.

        Args:
            logits: ``(samples, classes)``.
            features: ``(samples, width)``.
            label: class numbers, ``(samples,)``.
            bias: True if the head has a bias.
        """
        logits, features = (each.to(torch.promote_types(each.dtype, torch.float32)) for each in (logits, features))
        return cls(logits.softmax(1) - F.one_hot(label.long(), logits.shape[1]), features, bias)

    def per_sample(self) -> dict[str, Tensor]:
        """Return the gradients: ``weight (samples, classes, width)``, and ``bias (samples, classes)``."""
        weight = self.errors[:, :, None] * self.features[:, None]
        return {"weight": weight, "bias": self.errors} if self.bias else {"weight": weight}

    def mean(self) -> Tensor:
        """Return the mean gradient, ``(entries,)``.

        Entries are sorted by class: the row of the weight, then the bias.
        """
        return (self.errors.T @ self._with_ones(self.features)).flatten() / len(self.errors)

    def second_moment(self) -> Tensor:
        """Return the mean squared gradient per entry, in the order of :meth:`mean`."""
        return (self.errors.square().T @ self._with_ones(self.features.square())).flatten() / len(self.errors)

    def _with_ones(self, features: Tensor) -> Tensor:
        return F.pad(features, (0, 1), value=1.0) if self.bias else features


def variance_gap(source: LinearHeadGradients, target: LinearHeadGradients) -> Tensor:
    r"""Return the distance between two gradient variances, a scalar.

    .. math::
        \mu = \mathrm{mean}_i\, G_i(x), \quad v_s = \mathrm{mean}_i (G_i(x) - \mu)^2, \quad
        v_t = \mathrm{mean}_i (G_i(\tilde x) - \mu)^2, \quad \bar v = \tfrac12 (v_s + v_t)

    .. math::
        \mathrm{gap} = \tfrac12 \sum_{d \in \{s, t\}} \mathrm{mean}_k (v_{d,k} - \bar v_k)^2
            = \tfrac14\, \mathrm{mean}_k (v_{s,k} - v_{t,k})^2

    over the entries k of all tensors of the head. Nothing is detached: the gradient flows through both variances and
    the mean. Both variances are about the source's mean, so a shift of the mean counts as variance. Two equal sets give
    0. A set of one sample has the variance 0 about itself.

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
    r"""Return the mean squared gradient norm per tensor entry, a scalar.

    .. math:: \sum_{p \in \{W, b\}} \frac{\mathrm{mean}_i \lVert G^p_i(\tilde x) \rVert_2^2}{\dim p}
        = \mathrm{mean}_i\, \lVert e_i \rVert^2 \Big( \frac{\lVert h_i \rVert^2}{K D} + \frac{1}{K} \Big)

    for K classes and features of width D.

    Args:
        target: errors and features of a linear head, on the perturbed images.

    Example:
        >>> target = LinearHeadGradients(torch.tensor([[2.0]]), torch.tensor([[1.5, 2.0]]))  # weight (3, 4), bias 2
        >>> gradient_norm(target)  # 25 / 2 + 4
        tensor(16.5000)
    """
    squares = target.features.square().sum(1) / target.features.shape[1]
    return (target.errors.square().mean(1) * (squares + 1 if target.bias else squares)).mean()
