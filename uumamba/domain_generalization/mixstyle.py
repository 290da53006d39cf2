"""Mix of feature statistics between samples."""

import torch
from torch import Tensor, nn

from uumamba.domain_generalization.domains import require_domains
from uumamba.domain_generalization.uniform_draws import device_of, draw_uniform
from uumamba.runtime.errors import require


class MixStyle(nn.Module):
    r"""Layer that mixes the style of each sample's features with another sample's.

    With :math:`\mu` and :math:`\sigma` the mean and the standard deviation of each channel of a sample over its spatial
    axes, x' another sample of the batch and :math:`\lambda \sim \mathrm{Beta}(\alpha, \alpha)` for each sample:

    .. math:: \big(\lambda \sigma(x) + (1 - \lambda) \sigma(x')\big) \frac{x - \mu(x)}{\sigma(x)}
              + \lambda \mu(x) + (1 - \lambda) \mu(x')

    Put it behind the first stages of a network, 2-D or 3-D. No gradient flows through the statistics. It is the
    identity in evaluation mode, for a batch of one, and with probability 1 - p for the whole batch. A channel without
    spread, such as a single voxel, takes the mean alone. Every pass draws again, so the two passes of a sharpness-aware
    optimizer have different styles, as they have different dropout.

    Args:
        p: probability that a batch is mixed.
        alpha: of the beta distribution; the smaller, the more often a sample takes one of the two styles whole.
        eps: added to variances.
        generator: of every draw; None: torch's global one. It is no part of the state.

    Raises:
        UsageError: an option is out of range; or, from ``forward``, the features have no spatial axis, there is not one
            domain a sample, or all samples are of one domain.

    Example:
        >>> features = torch.tensor([[[0.0, 2.0]], [[10.0, 16.0]]])  # two samples, one channel, two pixels
        >>> styles = MixStyle(p=1.0, alpha=1e-3, eps=0.0, generator=torch.Generator().manual_seed(1))
        >>> styles(features, domains=torch.tensor([0, 1])).round()
        tensor([[[10., 16.]],
        <BLANKLINE>
                [[ 0.,  2.]]])

    References:
        Zhou et al., *Domain Generalization with MixStyle*, ICLR 2021, arXiv:2104.02008.
        Differs from the paper: with ``domains`` the other sample is drawn from all samples of other domains, for any
        number of domains in any order; the paper orders the batch in two halves.
    """

    def __init__(
        self, *, p: float = 0.5, alpha: float = 0.1, eps: float = 1e-6, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        require(0 <= p <= 1, "p", got=p, expected="a probability from 0 to 1")
        require(alpha > 0, "alpha", got=alpha, expected="a positive number")
        require(eps >= 0, "eps", got=eps, expected="at least 0")
        self.p, self.alpha, self.eps = p, alpha, eps
        self.generator = generator

    def forward(self, features: Tensor, domains: Tensor | None = None) -> Tensor:
        """Mix features ``(batch, channels, *spatial)``; with domains ``(batch,)``, only across domains."""
        require(features.ndim > 2, "features", got=tuple(features.shape), expected="(batch, channels, *spatial)")
        if not self.training or self.p == 0:
            return features
        if domains is not None:
            fits = domains.shape == features.shape[:1]
            require(fits, "domains", got=tuple(domains.shape), expected=f"shape ({len(features)},), one a sample")
            require_domains(len(domains.unique()), "mixing styles across domains")
        if len(features) < 2 or draw_uniform(self.generator) >= self.p:
            return features
        partner = self._partners(len(features), domains).to(features.device)
        share = self._shares(len(features)).to(features).view(-1, *[1] * (features.ndim - 1))
        with torch.no_grad():
            variance, mean = torch.var_mean(features, dim=tuple(range(2, features.ndim)), correction=0, keepdim=True)
            deviation = (variance + self.eps).sqrt()
            new_mean = share * mean + (1 - share) * mean[partner]
            new_deviation = share * deviation + (1 - share) * deviation[partner]
        return (features - mean) / deviation * new_deviation + new_mean

    def _partners(self, samples: int, domains: Tensor | None) -> Tensor:
        device = device_of(self.generator)
        if domains is None:
            return torch.randperm(samples, generator=self.generator, device=device)
        domains = domains.to(device)
        others = (domains[:, None] != domains[None, :]).float()
        return torch.multinomial(others, 1, generator=self.generator)[:, 0]

    def _shares(self, samples: int) -> Tensor:
        r"""Draw from Beta(alpha, alpha); torch's own distribution takes no generator.

        A share is x / (x + y) of two gamma variables. Small ones underflow, so their logarithms are drawn: the sum of
        the logarithms of a gamma variable of shape alpha + 1 and of a uniform one to the power of 1 / alpha.
        """
        device = device_of(self.generator)
        shape = torch.full((2, samples), self.alpha + 1, dtype=torch.float64, device=device)
        gamma = torch._standard_gamma(shape, generator=self.generator)
        power = torch.rand((2, samples), dtype=torch.float64, device=device, generator=self.generator)
        first, second = gamma.log() + power.log() / self.alpha
        return torch.sigmoid(first - second)

    def extra_repr(self) -> str:
        """Return the options for ``repr``."""
        return f"p={self.p}, alpha={self.alpha}"
