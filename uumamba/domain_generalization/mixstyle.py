"""Mixing of feature statistics between samples."""

import torch
from torch import Tensor, nn

from uumamba.domain_generalization.domains import require_domains
from uumamba.domain_generalization.uniform_draws import draw_uniform, generator_device
from uumamba.runtime.errors import require
from uumamba.runtime.options import NonNegative, Positive, Probability, check_options


class MixStyle(nn.Module):
    r"""Layer that mixes the style of each sample's features with another sample's.

    With :math:`\mu` and :math:`\sigma` the mean and the standard deviation of each channel of a sample over its spatial
    axes, x' another sample of the batch and :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)` for each sample:

    .. math:: \big(\lambda \sigma(x) + (1 - \lambda) \sigma(x')\big) \frac{x - \mu(x)}{\sigma(x)}
              + \lambda \mu(x) + (1 - \lambda) \mu(x')

    Put the layer behind the first stages of a network, 2-D or 3-D. No gradient flows through the statistics. The layer
    is the identity in evaluation mode, for a batch of one sample, and with probability 1 - p for a batch. A channel
    without spread, such as a single voxel, changes its mean only. Every pass draws again: the two passes of a
    sharpness-aware optimizer have different styles, like different dropout masks.

    Args:
        p: probability that a batch is mixed.
        alpha: parameter of the beta distribution; a small alpha takes mostly one of the two styles, unmixed.
        eps: constant added to variances.
        generator: generator of every draw, not part of the state; None for torch's global generator.

    Raises:
        UsageError: an option is out of range; or, from ``forward``, the features have no spatial axis, the number of
            domains differs from the number of samples, or all samples are of one domain.

    Example:
        >>> features = torch.tensor([[[0.0, 2.0]], [[10.0, 16.0]]])  # two samples, one channel, two pixels
        >>> styles = MixStyle(p=1.0, alpha=1e-3, eps=0.0, generator=torch.Generator().manual_seed(1))
        >>> styles(features, domains=torch.tensor([0, 1])).round()
        tensor([[[10., 16.]],
        <BLANKLINE>
                [[ 0.,  2.]]])

    References:
        Zhou et al., *Domain Generalization with MixStyle*, ICLR 2021, arXiv:2104.02008.
        Differs from the paper: with ``domains``, the other sample is drawn from all samples of other domains, for any
        number of domains in any order; the paper sorts the batch into two halves.
    """

    @check_options
    def __init__(
        self,
        *,
        p: Probability = 0.5,
        alpha: Positive = 0.1,
        eps: NonNegative = 1e-6,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.p, self.alpha, self.eps = p, alpha, eps
        self.generator = generator

    def forward(self, features: Tensor, domains: Tensor | None = None) -> Tensor:
        """Mix features ``(batch, channels, *spatial)``.

        With ``domains`` ``(batch,)``, each sample is mixed with a sample of another domain.
        """
        require(features.ndim > 2, "features", got=tuple(features.shape), expected="(batch, channels, *spatial)")
        if not self.training or self.p == 0:
            return features
        if domains is not None:
            require(
                domains.shape == features.shape[:1],
                "domains",
                got=tuple(domains.shape),
                expected=f"the shape ({len(features)},), one domain per sample",
            )
            require_domains(len(domains.unique()), "mixing styles of different domains")
        if len(features) < 2 or draw_uniform(self.generator) >= self.p:
            return features
        partner = self._draw_partners(len(features), domains).to(features.device)
        share = self._draw_shares(len(features)).to(features).view(-1, *[1] * (features.ndim - 1))
        with torch.no_grad():
            variance, mean = torch.var_mean(features, dim=tuple(range(2, features.ndim)), correction=0, keepdim=True)
            deviation = (variance + self.eps).sqrt()
            new_mean = share * mean + (1 - share) * mean[partner]
            new_deviation = share * deviation + (1 - share) * deviation[partner]
        return (features - mean) / deviation * new_deviation + new_mean

    def _draw_partners(self, samples: int, domains: Tensor | None) -> Tensor:
        device = generator_device(self.generator)
        if domains is None:
            return torch.randperm(samples, generator=self.generator, device=device)
        domains = domains.to(device)
        others = (domains[:, None] != domains[None, :]).float()
        return torch.multinomial(others, 1, generator=self.generator)[:, 0]

    def _draw_shares(self, samples: int) -> Tensor:
        r"""Draw from Beta(alpha, alpha); torch's own distribution takes no generator.

        A share is x / (x + y) of two gamma variables. Small gamma variables underflow, so their logarithms are drawn:
        the logarithm of a gamma variable of shape alpha + 1 plus the logarithm of a uniform variable, over alpha.
        """
        device = generator_device(self.generator)
        shape = torch.full((2, samples), self.alpha + 1, dtype=torch.float64, device=device)
        gamma = torch._standard_gamma(shape, generator=self.generator)
        power = torch.rand((2, samples), dtype=torch.float64, device=device, generator=self.generator)
        first, second = gamma.log() + power.log() / self.alpha
        return torch.sigmoid(first - second)

    def extra_repr(self) -> str:
        return f"p={self.p}, alpha={self.alpha}"
