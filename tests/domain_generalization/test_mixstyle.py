from typing import Any

import pytest
import torch
from torch import Tensor

from uumamba.domain_generalization import MixStyle

SHAPES = [(6, 3, 7), (6, 3, 5, 7), (6, 3, 4, 5, 6)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each sample's channels."""
    flat = features.flatten(2)
    return flat.mean(2), flat.std(2, correction=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_result_is_the_formula_for_some_share_and_partner(shape: tuple[int, ...]) -> None:
    features = torch.randn(shape, dtype=torch.float64) * torch.arange(1, 7).view(-1, *[1] * (len(shape) - 1))
    mixed = MixStyle(p=1.0, alpha=1.0, eps=0.0, generator=seeded())(features)
    mean, deviation = statistics(features)
    new_mean, new_deviation = statistics(mixed)
    for sample in range(6):
        # the new statistics lie on the straight line to some partner's, at one place for all channels and for both
        shares = [
            torch.cat([(new_mean - mean)[sample] / (mean[other] - mean[sample]),
                       (new_deviation - deviation)[sample] / (deviation[other] - deviation[sample])])
            for other in range(6) if other != sample
        ]  # fmt: skip
        steady = [share for share in shares if share.max() - share.min() < 1e-9]
        assert steady or torch.allclose(new_mean[sample], mean[sample], atol=1e-9)  # its own partner
        assert all(share.min() > -1e-9 and share.max() < 1 + 1e-9 for share in steady)
    before = (features.flatten(2) - mean[..., None]) / deviation[..., None]
    after = (mixed.flatten(2) - new_mean[..., None]) / new_deviation[..., None]
    torch.testing.assert_close(after, before)


def test_with_domains_every_partner_is_of_another_domain() -> None:
    domains = torch.tensor([0, 1, 0, 2, 2, 0])
    features = torch.arange(6.0).view(6, 1, 1) + torch.tensor([-0.1, 0.1])  # the mean is the sample's number
    styles = MixStyle(p=1.0, alpha=1e-4, eps=0.0, generator=seeded())  # whole styles
    seen = set()
    for _ in range(60):
        taken = styles(features, domains=domains).mean((1, 2)).round().long()
        seen |= {(sample, int(partner)) for sample, partner in enumerate(taken) if partner != sample}
    allowed = {(a, b) for a in range(6) for b in range(6) if domains[a] != domains[b]}
    assert seen == allowed


@pytest.mark.parametrize("alpha", [0.1, 0.3, 2.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    from scipy.stats import beta, kstest

    shares = MixStyle(alpha=alpha, generator=seeded())._draw_shares(4000)
    assert kstest(shares.numpy(), beta(alpha, alpha).cdf).pvalue > 0.01


def test_gradients_flow_through_features_but_not_through_statistics() -> None:
    features = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    styles = MixStyle(p=1.0, generator=seeded())
    mixed = styles(features)
    (gradient,) = torch.autograd.grad(mixed.sum(), features)
    with torch.no_grad():
        scale = statistics(mixed)[1] / statistics(features)[1]
    torch.testing.assert_close(gradient, scale[..., None].expand_as(gradient), rtol=1e-4, atol=1e-4)


def test_constant_channels_and_single_voxels_stay_finite() -> None:
    features = torch.zeros(4, 1, 3, 3)
    features[0] = torch.randn(3, 3)
    features.requires_grad_()
    mixed = MixStyle(p=1.0, generator=seeded())(features)
    mixed.sum().backward()
    assert mixed.isfinite().all()
    assert features.grad.isfinite().all()
    assert MixStyle(p=1.0)(features[:1]).data_ptr() == features.data_ptr()  # a batch of one
    voxels = torch.tensor([0.0, 10.0]).view(2, 1, 1)
    mixed = MixStyle(p=1.0, generator=seeded())(voxels, domains=torch.tensor([0, 1]))
    assert ((mixed >= 0) & (mixed <= 10)).all()


def test_features_and_domains_that_do_not_fit_are_refused(refused: Any) -> None:
    styles = MixStyle(p=1.0)
    with refused("features", got=(4, 8)):
        styles(torch.randn(4, 8))
    with refused("domains", got=(2,)):
        styles(torch.randn(4, 3, 8), domains=torch.tensor([0, 1]))
    with refused("domains", got=1):
        styles(torch.randn(3, 2, 4), domains=torch.zeros(3, dtype=torch.long))
