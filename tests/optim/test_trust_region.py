import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

from uumamba.optim import divergence
from uumamba.optim.trust_region import InputNoise
from uumamba.runtime.errors import UsageError

SHAPES = {"samples": (6, 4), "tokens": (3, 4, 5), "pixels": (2, 4, 5, 3), "voxels": (2, 4, 3, 2, 2)}


@pytest.fixture(params=SHAPES)
def pair(request: pytest.FixtureRequest) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return tuple(3 * torch.randn(SHAPES[request.param], dtype=torch.float64) for _ in "ab")


def test_it_is_torchs_divergence_of_categorical_distributions(pair: tuple[Tensor, Tensor]) -> None:
    then, now = (Categorical(logits=logits.movedim(1, -1)) for logits in pair)
    torch.testing.assert_close(divergence(*pair), kl_divergence(then, now).mean())


def test_the_sigmoid_form_adds_torchs_divergences_of_each_channel(pair: tuple[Tensor, Tensor]) -> None:
    then, now = (Bernoulli(logits=logits) for logits in pair)
    torch.testing.assert_close(divergence(*pair, form="sigmoid"), kl_divergence(then, now).sum(1).mean())


def test_the_sigmoid_of_one_channel_is_the_softmax_of_two(pair: tuple[Tensor, Tensor]) -> None:
    one = [logits[:, :1] for logits in pair]
    two = [torch.cat([logits, torch.zeros_like(logits)], dim=1) for logits in one]
    torch.testing.assert_close(divergence(*one, form="sigmoid"), divergence(*two))


def test_the_reference_stands_first() -> None:
    # p = (1/2, 1/2), q = (1/4, 3/4): KL(p||q) = log 2 - log(3) / 2, KL(q||p) = 3/4 log 3 - log 2
    even, odd = torch.zeros(1, 2), torch.tensor([[0.0, math.log(3)]])
    assert divergence(even, odd).item() == pytest.approx(math.log(2) - math.log(3) / 2)
    assert divergence(odd, even).item() == pytest.approx(0.75 * math.log(3) - math.log(2))


def test_equal_answers_have_no_distance(pair: tuple[Tensor, Tensor]) -> None:
    logits = pair[0].float()
    assert divergence(logits, logits) == 0
    assert 0 <= divergence(logits, logits + 1e-6) < 1e-6, "rounding makes it never negative"


def test_it_depends_neither_on_the_batchs_size_nor_on_the_number_of_classes(pair: tuple[Tensor, Tensor]) -> None:
    # the published code divides by batch * classes * batch
    expected = divergence(*pair)
    torch.testing.assert_close(divergence(*(torch.cat([logits] * 3) for logits in pair)), expected)
    padded = [torch.cat([logits, torch.full_like(logits, -1e3)], dim=1) for logits in pair]
    torch.testing.assert_close(divergence(*padded), expected)


def test_masked_classes_count_nothing_and_nan_is_not_hidden(pair: tuple[Tensor, Tensor]) -> None:
    masked = [torch.cat([logits, torch.full_like(logits, -torch.inf)], dim=1) for logits in pair]
    torch.testing.assert_close(divergence(*masked), divergence(*pair))
    assert divergence(torch.full((1, 2), torch.nan), torch.zeros(1, 2)).isnan()
    assert divergence(torch.zeros(1, 2), torch.tensor([[0.0, -torch.inf]])).isinf()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_compared_in_float32(dtype: torch.dtype) -> None:
    # probabilities of e^-50 and e^-60 are 0 in half precision, their logarithms are not
    then, now = torch.tensor([[0.0, -60.0]], dtype=dtype), torch.tensor([[-50.0, 0.0]], dtype=dtype)
    found = divergence(then, now)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(50.0, rel=1e-6)


def test_it_has_no_gradient() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    assert not divergence(torch.zeros(2, 3), logits).requires_grad


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3), (3, 3)), r"equal shapes \(batch, classes, ...\), got \(2, 3\) and \(3, 3\)"),
        (((2,), (2,)), r"got \(2,\) and \(2,\)"),
        (((2, 1, 4), (2, 1, 4)), 'softmax of one class is always 1; take form="sigmoid"'),
    ],
)
def test_logits_that_cannot_be_compared_are_refused(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        divergence(*(torch.zeros(shape) for shape in shapes))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))


def test_noise_has_the_asked_deviation_and_is_new_in_each_draw_and_the_same_for_each_seed() -> None:
    net, x = nn.Identity(), torch.zeros(100, 100)
    seen = []
    for seed in (0, 0, 1):
        noise, numbers = InputNoise(net, sigma=0.3, seed=seed), {}
        for _ in range(2):
            with noise.added(numbers):
                seen.append(net(x))
    assert numbers == {"draws": 2}
    assert seen[0].std().item() == pytest.approx(0.3, rel=0.05)
    assert abs(seen[0].mean().item()) < 0.02
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    for other in (seen[1], seen[4]):
        assert abs(torch.corrcoef(torch.stack([seen[0].flatten(), other.flatten()]))[0, 1]) < 0.05


def test_every_call_of_a_draw_has_noise_of_its_own() -> None:
    net, x = nn.Identity(), torch.zeros(100)
    with InputNoise(net, sigma=0.3).added({}):
        assert not torch.equal(net(x), net(x))


def test_torchs_own_generator_is_not_touched() -> None:
    net = nn.Identity()
    before = torch.get_rng_state()
    with InputNoise(net, sigma=0.3).added({}):
        net(torch.zeros(5))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_first_floating_point_input_takes_the_noise_wherever_it_stands() -> None:
    class Net(nn.Module):
        def forward(self, mask: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return mask, x, y

    net, mask, x = Net(), torch.ones(3, dtype=torch.long), torch.zeros(3)
    for call in (lambda: net(mask, x, x), lambda: net(mask, x=x, y=x), lambda: net(mask=mask, y=x, x=x)):
        with InputNoise(net, sigma=0.1).added({}):
            found = call()
        assert torch.equal(found[0], mask)
        assert sorted([bool(found[1].any()), bool(found[2].any())]) == [False, True]


def test_an_embeddings_output_takes_the_noise() -> None:
    net, tokens = Tokens(), torch.tensor([[1, 2, 3]])
    clean = net(tokens)
    with InputNoise(net, sigma=0.1, at=net.embedding).added({}):
        assert not torch.equal(net(tokens), clean)
    assert torch.equal(net(tokens), clean), "no hook is left behind"


@pytest.mark.slow
def test_a_compiled_network_takes_the_noise() -> None:
    net, x = torch.compile(nn.Linear(3, 3), backend="eager"), torch.ones(2, 3)
    clean = net(x)
    with InputNoise(net, sigma=0.1).added({}):
        assert not torch.equal(net(x), clean)
    assert torch.equal(net(x), clean)


def test_no_hook_is_left_behind_by_a_pass_that_raises() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="inside"), InputNoise(net, sigma=0.1).added({}):
        raise RuntimeError("inside")
    assert not net._forward_pre_hooks


def call_another() -> Callable[[nn.Module], Tensor]:
    other = nn.Linear(2, 2)
    return lambda net: other(torch.ones(1, 2))


@pytest.mark.parametrize(
    ("make", "call", "message"),
    [
        (nn.Identity, call_another(), "did not call the module whose input or output takes the noise"),
        (Tokens, lambda net: net(torch.tensor([1])), "no floating-point input .* pass as noise_at="),
    ],
)
def test_noise_that_would_reach_nothing_is_refused(
    make: Callable[[], nn.Module], call: Callable[[nn.Module], Tensor], message: str
) -> None:
    net = make()
    with pytest.raises(UsageError, match=message), InputNoise(net, sigma=0.1).added({}):
        call(net)


def test_a_submodule_without_one_floating_point_output_is_refused() -> None:
    lstm = nn.LSTM(2, 3)
    noise = InputNoise(None, sigma=0.1, at=lstm)
    with pytest.raises(UsageError, match="one floating-point tensor, got a tuple"), noise.added({}):
        lstm(torch.zeros(1, 1, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(InputNoise, nn.Identity(), sigma=0.0), "sigma must be positive and finite, got 0.0"),
        (partial(InputNoise, nn.Identity(), sigma=math.inf), "got inf"),
        (partial(InputNoise, None, sigma=0.1), "pass net=, or the submodule as noise_at="),
    ],
)
def test_arguments_of_no_use_are_refused(make: Callable[[], InputNoise], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
