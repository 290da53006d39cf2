import copy

import pytest
import torch
from torch import Tensor, nn

from uumamba.domain_generalization import MixStyle
from uumamba.runtime.errors import UsageError

SHAPES = [(6, 3, 7), (6, 3, 5, 7), (6, 3, 4, 5, 6)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation of each sample's channels."""
    flat = features.flatten(2)
    return flat.mean(2), flat.std(2, correction=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_the_identity_in_evaluation_mode_with_p_of_zero_and_for_a_batch_of_one(shape: tuple[int, ...]) -> None:
    features = torch.randn(shape)
    assert MixStyle(p=1.0).eval()(features) is features
    assert MixStyle(p=0.0)(features) is features
    assert MixStyle(p=1.0)(features[:1]).data_ptr() == features.data_ptr()


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


def test_one_batch_by_hand() -> None:
    # two samples of means 1 and 13, deviations 1 and 3: the partner of each is the other, or itself
    features = torch.tensor([[[0.0, 2.0]], [[10.0, 16.0]]], dtype=torch.float64)
    styles = MixStyle(p=1.0, eps=0.0, generator=seeded(2))
    mixed = styles(features, domains=torch.tensor([0, 1]))
    for sample, (mean, deviation, other_mean, other_deviation) in enumerate([(1, 1, 13, 3), (13, 3, 1, 1)]):
        share = (mixed[sample].mean().item() - other_mean) / (mean - other_mean)
        spread = share * deviation + (1 - share) * other_deviation
        centre = share * mean + (1 - share) * other_mean
        torch.testing.assert_close(mixed[sample, 0], torch.tensor([centre - spread, centre + spread]).double())


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


def test_without_domains_any_sample_may_be_the_partner() -> None:
    features = torch.arange(4.0).view(4, 1, 1) + torch.tensor([-0.1, 0.1])
    styles = MixStyle(p=1.0, alpha=1e-4, eps=0.0, generator=seeded())
    seen = {(i, int(j)) for _ in range(60) for i, j in enumerate(styles(features).mean((1, 2)).round().long())}
    assert seen == {(a, b) for a in range(4) for b in range(4)}


@pytest.mark.parametrize("alpha", [0.1, 0.3, 2.0])
def test_shares_are_beta_distributed(alpha: float) -> None:
    from scipy.stats import beta, kstest

    shares = MixStyle(alpha=alpha, generator=seeded())._shares(4000)
    assert kstest(shares.numpy(), beta(alpha, alpha).cdf).pvalue > 0.01


def test_it_fires_at_its_rate() -> None:
    features = torch.randn(4, 2, 8)
    styles = MixStyle(p=0.3, generator=seeded())
    fired = sum(styles(features) is not features for _ in range(1000))
    assert abs(fired - 300) < 60  # four standard deviations


def test_gradients_pass_the_features_and_not_their_statistics() -> None:
    features = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    styles = MixStyle(p=1.0, generator=seeded())
    mixed = styles(features)
    (gradient,) = torch.autograd.grad(mixed.sum(), features)
    with torch.no_grad():
        scale = statistics(mixed)[1] / statistics(features)[1]
    torch.testing.assert_close(gradient, scale[..., None].expand_as(gradient), rtol=1e-4, atol=1e-4)


def test_equal_generators_draw_alike_and_leave_the_global_one_alone() -> None:
    features = torch.randn(6, 3, 4, 4)
    state = torch.get_rng_state()
    first, second = (MixStyle(p=0.5, generator=seeded(4)) for _ in range(2))
    runs = [[styles(features) for _ in range(5)] for styles in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    copied = copy.deepcopy(first)
    assert torch.equal(copied(features), first(features))


def test_a_flat_channel_stays_finite() -> None:
    features = torch.zeros(4, 1, 3, 3)
    features[0] = torch.randn(3, 3)
    features.requires_grad_()
    mixed = MixStyle(p=1.0, generator=seeded())(features)
    mixed.sum().backward()
    assert mixed.isfinite().all()
    assert features.grad.isfinite().all()


def test_a_single_voxel_takes_the_mean_alone() -> None:
    features = torch.tensor([0.0, 10.0]).view(2, 1, 1)
    mixed = MixStyle(p=1.0, generator=seeded())(features, domains=torch.tensor([0, 1]))
    assert ((mixed >= 0) & (mixed <= 10)).all()
    assert not torch.equal(mixed, features)


def test_it_sits_in_a_network_without_parameters_of_its_own() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), MixStyle(p=1.0), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert len(list(net.parameters())) == 2
    assert set(net.state_dict()) == {"0.weight", "0.bias"}
    assert net(torch.randn(4, 1, 8, 8)).shape == (4, 4)
    assert "MixStyle(p=1.0, alpha=0.1)" in repr(net)


def test_one_domain_where_several_are_needed_is_refused() -> None:
    with pytest.raises(UsageError, match="Mixing styles across domains needs at least 2 domains, got 1"):
        MixStyle()(torch.randn(3, 2, 4), domains=torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"p": 1.5}, r"p is a probability from 0 to 1, got 1\.5"),
        ({"alpha": 0.0}, r"alpha must be positive, got 0\.0"),
        ({"eps": -1.0}, r"eps must not be negative, got -1\.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        MixStyle(**options)


def test_features_without_a_spatial_axis_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(batch, channels, \*spatial\), got shape \(4, 8\)"):
        MixStyle()(torch.randn(4, 8))


def test_as_many_domains_as_samples_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"one domain a sample, got shape \(2,\) for 4 samples"):
        MixStyle(p=1.0)(torch.randn(4, 3, 8), domains=torch.tensor([0, 1]))
