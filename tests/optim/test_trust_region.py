import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, kl_divergence

from tests.optim_members import torch_divergence
from uumamba.optim import divergence
from uumamba.optim.output_divergence import softened_divergence
from uumamba.optim.trust_region import InputNoise

SHAPES = {"samples": (6, 4), "tokens": (3, 4, 5), "voxels": (2, 4, 3, 2, 2)}


@pytest.fixture(params=SHAPES)
def pair(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    return tuple(3 * torch.randn(SHAPES[request.param], dtype=torch.float64) for _ in "ab")


def test_it_is_torchs_divergence_of_distributions(pair: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(divergence(*pair), torch_divergence(*pair))
    softened = softened_divergence(*pair, temperature=3.0).mean()
    torch.testing.assert_close(softened, 9 * torch_divergence(*pair, temperature=3.0))
    then, now = (Bernoulli(logits=logits) for logits in pair)
    torch.testing.assert_close(divergence(*pair, form="sigmoid"), kl_divergence(then, now).sum(1).mean())


def test_the_reference_comes_first() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL(p||q) = log 2 - log(3) / 2, KL(q||p) = 3/4 log 3 - log 2
    even, odd = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]], requires_grad=True)
    assert divergence(even, odd).item() == pytest.approx(math.log(2) - math.log(3) / 2)
    assert divergence(odd, even).item() == pytest.approx(0.75 * math.log(3) - math.log(2))
    assert not divergence(even, odd).requires_grad


def test_equal_outputs_have_no_distance(pair: tuple[Tensor, Tensor]) -> None:
    logits = pair[0].float()
    assert divergence(logits, logits) == 0
    assert 0 <= divergence(logits, logits + 1e-6) < 1e-6, "rounding makes it never negative"


def test_it_depends_neither_on_the_batch_size_nor_on_classes_without_probability(pair: tuple[Tensor, Tensor]) -> None:
    # the published code divides by batch * classes * batch
    expected = divergence(*pair)
    torch.testing.assert_close(divergence(*(torch.cat([logits] * 3) for logits in pair)), expected)
    for masked in (-1e3, -torch.inf):
        padded = [torch.cat([logits, torch.full_like(logits, masked)], dim=1) for logits in pair]
        torch.testing.assert_close(divergence(*padded), expected)
        now = padded[1].requires_grad_()
        (gradient,) = torch.autograd.grad(softened_divergence(padded[0], now).sum(), now)
        assert gradient.isfinite().all()


def test_values_that_are_not_finite_are_not_hidden() -> None:
    assert divergence(torch.full((1, 2), torch.nan), torch.zeros(1, 2)).isnan()
    assert divergence(torch.zeros(1, 2), torch.tensor([[0.0, -torch.inf]])).isinf()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(dtype: torch.dtype) -> None:
    # probabilities of e^-50 and e^-60 are 0 in half precision, their logarithms are not
    then, now = torch.tensor([[0.0, -60.0]], dtype=dtype), torch.tensor([[-50.0, 0.0]], dtype=dtype)
    found = divergence(then, now)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(50.0, rel=1e-6)


@pytest.mark.parametrize(
    ("shapes", "key", "value"),
    [(((2, 3), (3, 3)), "logits", (3, 3)), (((2,), (2,)), "logits", (2,)), (((2, 1, 4),) * 2, "form", "softmax")],
)
def test_logits_that_cannot_be_compared_are_refused(shapes: Any, key: str, value: Any, refused: Any) -> None:
    with refused(key, got=value):
        divergence(*(torch.zeros(shape) for shape in shapes))


def test_noise_has_the_given_deviation_is_new_in_each_draw_and_the_same_for_each_seed() -> None:
    net, x, seen = nn.Identity(), torch.zeros(100, 100), []
    before = torch.get_rng_state()
    for seed in (0, 0, 1):
        noise, numbers = InputNoise(net, sigma=0.3, seed=seed), {}
        for _ in range(2):
            with noise.add(numbers):
                seen += [net(x), net(x)]
    assert numbers == {"draws": 2}
    assert torch.equal(torch.get_rng_state(), before), "torch's own generator is not used"
    assert seen[0].std().item() == pytest.approx(0.3, rel=0.05)  # seven standard errors of 10,000 numbers
    assert abs(seen[0].mean().item()) < 0.02
    assert all(torch.equal(one, other) for one, other in zip(seen[:4], seen[4:8], strict=True))
    for other in (seen[1], seen[2], seen[8]):
        assert abs(torch.corrcoef(torch.stack([seen[0].flatten(), other.flatten()]))[0, 1]) < 0.05


def test_the_first_floating_point_input_gets_the_noise_wherever_it_stands() -> None:
    class Net(nn.Module):
        def forward(self, mask: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return mask, x, y

    net, mask, x = Net(), torch.ones(3, dtype=torch.long), torch.zeros(3)
    for call in (lambda: net(mask, x, x), lambda: net(mask, x=x, y=x), lambda: net(mask=mask, y=x, x=x)):
        with InputNoise(net, sigma=0.1).add({}):
            found = call()
        assert torch.equal(found[0], mask)
        assert sorted([bool(found[1].any()), bool(found[2].any())]) == [False, True]


def test_an_embeddings_output_gets_the_noise_and_no_hook_is_left_behind() -> None:
    net, tokens = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 3)), torch.tensor([[1, 2, 3]])
    clean, noise = net(tokens), InputNoise(None, sigma=0.1, at=net[0])
    with noise.add({}):
        assert not torch.equal(net(tokens), clean)
    with pytest.raises(RuntimeError, match="inside"), noise.add({}):
        raise RuntimeError("inside")
    assert torch.equal(net(tokens), clean)


@pytest.mark.slow
def test_a_compiled_network_gets_the_noise() -> None:
    net, x = torch.compile(nn.Linear(3, 3), backend="eager"), torch.ones(2, 3)
    clean = net(x)
    with InputNoise(net, sigma=0.1).add({}):
        assert not torch.equal(net(x), clean)
    assert torch.equal(net(x), clean)


@pytest.mark.parametrize(
    ("net", "at", "key"),
    [(nn.Linear(2, 2), None, "net"), (nn.Embedding(3, 2), None, "net"), (None, nn.LSTM(2, 3), "noise_at")],
    ids=["is not called", "has no such input", "returns a tuple"],
)
def test_noise_that_would_reach_nothing_is_refused(net: Any, at: Any, key: str, refused: Any) -> None:
    with refused(key), InputNoise(net, sigma=0.1, at=at).add({}):
        if isinstance(net, nn.Embedding):
            net(torch.tensor([1]))
        if at is not None:
            at(torch.zeros(1, 1, 2))
