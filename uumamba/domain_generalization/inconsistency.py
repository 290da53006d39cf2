"""How differently two sets of samples pull at a head: the two terms that UDIM lowers."""

from torch import Tensor

from uumamba.domain_generalization.head_gradients import PerSampleGradients


def variance_gap(source: PerSampleGradients, target: PerSampleGradients) -> Tensor:
    r"""The distance between the variances of two sets of gradients, both about the mean of the first.

    .. math::
        \mu = \mathrm{mean}_i\, G_i(x), \quad v_s = \mathrm{mean}_i (G_i(x) - \mu)^2, \quad
        v_t = \mathrm{mean}_i (G_i(\tilde x) - \mu)^2, \quad \bar v = \tfrac12 (v_s + v_t)

    .. math::
        \mathrm{gap} = \tfrac12 \sum_{d \in \{s, t\}} \mathrm{mean}_k (v_{d,k} - \bar v_k)^2
            = \tfrac14\, \mathrm{mean}_k (v_{s,k} - v_{t,k})^2

    over the entries k of all tensors of the head together. Nothing is detached: the gradient flows through both
    variances and the mean. Centred on the source, a shift of the mean counts as variance. Two equal sets give 0; a set
    of one sample has the variance 0 about itself.

    Args:
        source: gradients of the samples.
        target: gradients of their perturbed copies, of the same head.

    Example:
        >>> import torch
        >>> from uumamba.domain_generalization import StackedGradients
        >>> source = StackedGradients({"weight": torch.tensor([[1.0], [3.0]])})  # mean 2, variance 1
        >>> target = StackedGradients({"weight": torch.tensor([[2.0], [6.0]])})  # about 2: (0 + 16) / 2
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


def gradient_norm(target: PerSampleGradients) -> Tensor:
    r"""The mean squared norm of the gradients of perturbed samples, each tensor's divided by its number of entries.

    .. math:: \sum_{p \in \{W, b\}} \frac{\mathrm{mean}_i \lVert G^p_i(\tilde x) \rVert_2^2}{\dim p}

    Example:
        >>> import torch
        >>> from uumamba.domain_generalization import StackedGradients
        >>> gradient_norm(StackedGradients({"weight": torch.tensor([[3.0, 4.0]]), "bias": torch.tensor([[2.0]])}))
        tensor(16.5000)
    """
    return target.mean_squared_norm()
