"""Gradients of smoothed losses against central differences and closed forms."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector
from torch.utils.checkpoint import checkpoint

from uumamba.unlearning import CurvatureRegularization, GradientPenalty, RandomizedSmoothing, Smoothing

SMOOTHINGS = {
    "randomised smoothing": RandomizedSmoothing(sigma=0.1, draws=2),
    "gradient penalty": GradientPenalty(weight=0.7),
    "gradient penalty, finite difference": GradientPenalty(weight=0.7, second_order="finite_difference"),
    "curvature": CurvatureRegularization(weight=0.7),
    "curvature, finite difference": CurvatureRegularization(weight=0.7, second_order="finite_difference"),
}
every_smoothing = pytest.mark.parametrize("smoothing", SMOOTHINGS.values(), ids=SMOOTHINGS.keys())
every_exact = pytest.mark.parametrize("smoothing", [SMOOTHINGS["gradient penalty"], SMOOTHINGS["curvature"]])


def gradient_of(smoothing: Smoothing, net: nn.Module, loss: Callable[[nn.Module], Tensor], **options: Any) -> Tensor:
    params = [param for param in net.parameters() if param.requires_grad]
    return torch.cat([each.flatten() for each in torch.autograd.grad(smoothing(net, loss, **options), params)])


def penalised(task: Any, weight: float) -> float:
    return (task.loss(task.net) + weight * task.gradient().norm()).item()


@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_of_the_penalty_is_that_of_central_differences(
    task: Any, differentiate_numerically: Any, frozen: bool
) -> None:
    task.net[0].weight.requires_grad_(not frozen)
    smoothing = GradientPenalty(weight=0.7)
    assert smoothing(task.net, task.loss).item() == pytest.approx(penalised(task, 0.7), rel=1e-12)
    expected = differentiate_numerically(lambda: penalised(task, 0.7), task.trainable())
    torch.testing.assert_close(gradient_of(smoothing, task.net, task.loss), expected, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(task.gradient(), expected, rtol=1e-2)  # the released code's: no gradient of the penalty


@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_of_the_curvature_is_that_of_central_differences(
    task: Any, differentiate_numerically: Any, frozen: bool
) -> None:
    task.net[0].weight.requires_grad_(not frozen)
    smoothing = CurvatureRegularization(weight=3.0, mu=0.5)
    direction = 0.5 * task.gradient() / task.gradient().norm()  # a constant in the derivative

    def value() -> float:
        return (task.loss(task.net) + 3.0 * (task.gradient_at(direction) - task.gradient()).norm()).item()

    assert smoothing(task.net, task.loss).item() == pytest.approx(value(), rel=1e-12)
    expected = differentiate_numerically(value, task.trainable())
    torch.testing.assert_close(gradient_of(smoothing, task.net, task.loss), expected, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(task.gradient(), expected, rtol=1e-2)


@pytest.mark.parametrize("make", [GradientPenalty, CurvatureRegularization])
def test_finite_differences_converge_with_their_order(task: Any, make: Callable[..., Smoothing]) -> None:
    exact = gradient_of(make(weight=2.0), task.net, task.loss)
    errors = []
    for radius in (1e-3, 5e-4, 2.5e-4):
        smoothing = make(weight=2.0, second_order="finite_difference", radius=radius)
        errors.append((gradient_of(smoothing, task.net, task.loss) - exact).norm().item())
    assert errors[0] < 1e-2 * exact.norm()
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("make", [GradientPenalty, CurvatureRegularization])
def test_the_default_radius_is_precise_in_float32(task: Any, make: Callable[..., Smoothing]) -> None:
    task.batch = (task.batch[0].float(), task.batch[1])
    net = task.net.float()
    found = [
        gradient_of(make(weight=2.0, second_order=order), net, task.loss) for order in ("exact", "finite_difference")
    ]
    products = [each - task.gradient() for each in found]
    assert (products[0] - products[1]).norm() < 0.02 * products[0].norm()


def test_the_finite_difference_of_the_penalty_is_its_published_form(task: Any) -> None:
    c, radius = 2.0, 0.05
    g = task.gradient()
    r = radius * parameters_to_vector(task.net.parameters()).norm()
    expected = (1 - c / r) * g + c / r * task.gradient_at(r * g / g.norm())
    smoothing = GradientPenalty(weight=c, second_order="finite_difference", radius=radius)
    torch.testing.assert_close(gradient_of(smoothing, task.net, task.loss), expected.detach())


def test_randomised_smoothing_is_the_mean_over_its_draws() -> None:
    quadratic = nn.Linear(2, 1, bias=False).double()  # the gradient at w + sigma z is 2 (w + sigma z)
    smoothing = RandomizedSmoothing(sigma=0.5, draws=4000)
    found = gradient_of(smoothing, quadratic, lambda net: net.weight.square().sum())
    torch.testing.assert_close(found, 2 * quadratic.weight.detach().flatten(), atol=0.05, rtol=0)
    value = smoothing(quadratic, lambda net: net.weight.square().sum())
    expected = quadratic.weight.square().sum().item() + 2 * 0.25  # + sigma^2 per weight
    assert value.item() == pytest.approx(expected, abs=0.05)


def test_randomised_smoothing_without_noise_is_the_loss(task: Any) -> None:
    smoothing = RandomizedSmoothing(sigma=0.0)
    assert smoothing(task.net, task.loss).item() == pytest.approx(task.loss(task.net).item(), rel=1e-12)
    torch.testing.assert_close(gradient_of(smoothing, task.net, task.loss), task.gradient())


def test_draws_depend_on_seed_and_step_alone(task: Any) -> None:
    def run(seed: int, step: int) -> Tensor:
        torch.rand(3)
        return gradient_of(RandomizedSmoothing(sigma=0.5, seed=seed), task.net, task.loss, step=step)

    first = run(0, 1)
    assert torch.equal(first, run(0, 1))
    assert not torch.equal(first, run(0, 2))
    assert not torch.equal(first, run(1, 1))


def test_a_frozen_parameter_does_not_shift_the_draws_of_others(task: Any) -> None:
    def offset_of_last(net: nn.Module) -> Tensor:
        seen = []
        RandomizedSmoothing(sigma=0.5, draws=1)(net, lambda net: seen.append(net[2].weight.detach()) or task.loss(net))
        return seen[0] - net[2].weight.detach()

    before = offset_of_last(task.net)
    task.net[0].weight.requires_grad_(False)
    assert torch.equal(before, offset_of_last(task.net))


@every_smoothing
def test_frozen_parameters_are_not_perturbed(task: Any, smoothing: Smoothing) -> None:
    frozen, seen = task.net[0].weight.requires_grad_(False), []
    smoothing(task.net, lambda net: seen.append(net[0].weight) or task.loss(net)).backward()
    assert all(each is frozen for each in seen)
    assert frozen.grad is None
    assert task.net[2].weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", [name for name in SMOOTHINGS if name != "randomised smoothing"])
def test_a_zero_gradient_gives_a_zero_gradient(name: str, dtype: torch.dtype) -> None:
    if "difference" in name and torch.finfo(dtype).bits < 32:
        dtype = torch.float32
    net = nn.Linear(2, 2).to(dtype)
    with torch.no_grad():
        for param in net.parameters():
            param.zero_()  # the gradient of the squares is 0, their Hessian is not
    value = SMOOTHINGS[name](net, lambda net: sum(param.square().sum() for param in net.parameters()))
    value.backward()
    assert value.item() == 0
    assert all(torch.equal(param.grad, torch.zeros_like(param)) for param in net.parameters())


@every_smoothing
def test_weights_statistics_and_later_draws_stay(smoothing: Smoothing) -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    image, label = torch.randn(8, 2), torch.randint(0, 3, (8,))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    net(image)
    expected = torch.rand(1)
    for name, value in before.items():
        net.state_dict()[name].copy_(value)
    torch.set_rng_state(state)
    smoothing(net, lambda net: F.cross_entropy(net(image), label))
    assert torch.equal(torch.rand(1), expected)  # as after a single pass
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@every_smoothing
def test_dropout_draws_the_same_in_all_passes_of_a_call_and_anew_in_the_next(smoothing: Smoothing) -> None:
    net, masks = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), []

    def loss(net: nn.Module) -> Tensor:
        masks.append(net[1](torch.ones(64)))
        return net[0](torch.ones(4)).square().sum()

    smoothing(net, loss)
    passes = len(masks)
    assert passes == 1 or all(torch.equal(mask, masks[0]) for mask in masks)
    smoothing(net, loss)
    assert not torch.equal(masks[0], masks[passes])


@every_smoothing
def test_an_error_in_a_pass_restores_weights_and_buffers(task: Any, smoothing: Smoothing) -> None:
    before, params, calls = parameters_to_vector(task.net.parameters()).clone(), [*task.net.parameters()], []

    def loss(net: nn.Module) -> Tensor:
        calls.append(1)
        if len(calls) == 2 or isinstance(smoothing, GradientPenalty):
            raise ValueError("planted")
        return task.loss(net)

    with pytest.raises(ValueError, match="planted"):
        smoothing(task.net, loss)
    assert all(a is b for a, b in zip(params, task.net.parameters(), strict=True))
    assert torch.equal(parameters_to_vector(task.net.parameters()), before)


class Refusing(Function):
    """Square whose backward pass is hidden from autograd, as that of a compiled kernel is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.no_grad()
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


@every_exact
def test_a_kernel_without_a_second_derivative_is_named(task: Any, smoothing: Smoothing, refused: Callable) -> None:
    with refused("second_order", "Refusing hides its backward pass") as error:
        smoothing(task.net, lambda net: Refusing.apply(net[0].weight).sum())
    assert "finite_difference" in str(error.value)


@pytest.mark.parametrize("make", [GradientPenalty, CurvatureRegularization])
def test_finite_differences_serve_kernels_without_a_second_derivative(
    task: Any, make: Callable[..., Smoothing]
) -> None:
    options = {"weight": 0.5, "second_order": "finite_difference", "radius": 1e-4}
    hidden = gradient_of(make(**options), task.net, lambda net: task.loss(net) + Refusing.apply(net[0].weight).sum())
    exact = gradient_of(make(weight=0.5), task.net, lambda net: task.loss(net) + net[0].weight.square().sum())
    torch.testing.assert_close(hidden, exact, rtol=1e-2, atol=1e-3)


@every_exact
def test_fused_attention_is_differentiated_twice(smoothing: Smoothing) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(8, 24)

        def forward(self, x: Tensor) -> Tensor:
            query, key, value = self.project(x).chunk(3, -1)
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    net, x = Attention(), torch.randn(2, 1, 5, 8)
    assert gradient_of(smoothing, net, lambda net: net(x).square().mean()).isfinite().all()


@every_smoothing
def test_recomputed_layers_use_the_weights_of_each_pass(task: Any, smoothing: Smoothing) -> None:
    found = gradient_of(
        smoothing,
        task.net,
        lambda net: F.cross_entropy(checkpoint(net, task.batch[0], use_reentrant=False), task.batch[1]),
    )
    torch.testing.assert_close(found, gradient_of(smoothing, task.net, task.loss))


@every_smoothing
def test_recurrent_layers_use_the_weights_of_each_pass(smoothing: Smoothing) -> None:
    net = nn.LSTM(2, 3)  # it keeps a list of its weights
    x = torch.randn(4, 1, 2)
    found = gradient_of(smoothing, net, lambda net: net(x)[0].square().mean())
    assert (found != 0).sum() > 0.9 * len(found)


@every_smoothing
def test_a_net_without_trainable_parameters_or_in_parallel_is_refused(
    smoothing: Smoothing, refused: Callable, task: Any
) -> None:
    with refused("net", "no trainable parameter"):
        smoothing(task.net.requires_grad_(False), task.loss)
    with refused("net", "DistributedDataParallel"):
        smoothing(DistributedDataParallel.__new__(DistributedDataParallel), task.loss)


@every_smoothing
def test_a_loss_that_is_no_scalar_or_does_not_depend_on_the_net_is_refused(
    smoothing: Smoothing, refused: Callable, task: Any
) -> None:
    with refused("forget_loss", "a tensor of shape (2,)"):
        smoothing(task.net, lambda net: torch.zeros(2))
    with refused("forget_loss"):
        smoothing(task.net, lambda net: torch.zeros(()))


def test_finite_differences_refuse_half_precision(refused: Callable) -> None:
    net = nn.Linear(1, 1).bfloat16()
    with refused("second_order"):
        GradientPenalty(weight=1.0, second_order="finite_difference")(net, lambda net: net.weight.sum())


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: RandomizedSmoothing(sigma=-1.0), "sigma"),
        (lambda: RandomizedSmoothing(sigma=1.0, draws=0), "draws"),
        (lambda: GradientPenalty(weight=-1.0), "weight"),
        (lambda: GradientPenalty(weight=1.0, radius=0.0), "radius"),
        (lambda: GradientPenalty(weight=1.0, second_order=True), "second_order"),
        (lambda: CurvatureRegularization(weight=1.0, mu=0.0), "mu"),
    ],
)
def test_an_option_out_of_range_is_refused(make: Callable, key: str, refused: Callable) -> None:
    with refused(key):
        make()
