"""Input gradient of loss and gradient norm, for any kernel."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from uumamba.domain_generalization.input_ascent import InputAscent

RHO = 0.05


class Cube(Function):
    """x cubed, with a backward pass in torch's own operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class Refusing(Cube):
    backward = staticmethod(once_differentiable(Cube.backward))


class Hidden(Cube):
    """Cube with a backward pass hidden from autograd, like a custom kernel."""

    backward = staticmethod(torch.no_grad()(Cube.backward))


class PartlyHidden(Function):
    """A product whose gradient in one factor is hidden from autograd."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return grad * b, (grad * a).detach()


@torch.library.custom_op("uumamba_tests::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return x**3


@torch.library.custom_op("uumamba_tests::cube_backward", mutates_args=())
def cube_backward(grad: Tensor, x: Tensor) -> Tensor:
    return 3 * x**2 * grad


cube.register_autograd(
    lambda ctx, grad: cube_backward(grad, ctx.saved_tensors[0]),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)
ONCE = {
    "refusing": Refusing.apply,
    "hidden": Hidden.apply,
    "partly hidden": lambda x: PartlyHidden.apply(x, x**2),
    "operator": cube,
}
TWICE = {
    "differentiable": Cube.apply,
    "hidden where nothing learns": lambda x: PartlyHidden.apply(x**3, torch.ones_like(x)),
}
WAYS = [True, "finite_difference", False]


class CubeNet(nn.Module):
    """Two layers with a cube between them, and optional dropout."""

    def __init__(self, kernel: Callable[[Tensor], Tensor], dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.kernel, self.dropout = kernel, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.kernel(torch.tanh(self.first(x)))))


Problem = tuple[CubeNet, Callable[[Tensor], Tensor], Tensor]


def problem(net: CubeNet) -> Problem:
    """The network in float64, its loss, and values of an additive perturbation."""
    net = net.double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (10,), generator=generator)
    return net, lambda values: F.cross_entropy(net(x + values), y), torch.zeros_like(x)


def sharpness_aware_loss(net: CubeNet, loss_at: Callable[[Tensor], Tensor], values: Tensor) -> float:
    """L + rho ||grad L||, at values, by a plain backward pass."""
    loss = loss_at(values)
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    return float(loss.detach() + RHO * torch.cat([each.flatten() for each in gradients]).norm())


def numerical(net: CubeNet, loss_at: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """The gradient of that, entry by entry, from its values alone."""
    found = torch.zeros_like(values)
    for index in range(values.numel()):
        ends = []
        for sign in (1, -1):
            shifted = values.clone()
            shifted.view(-1)[index] += sign * 1e-5
            ends.append(sharpness_aware_loss(net, loss_at, shifted))
        found.view(-1)[index] = (ends[0] - ends[1]) / 2e-5
    return found


def test_two_backward_passes_give_the_gradient_of_loss_and_gradient_norm() -> None:
    net, loss_at, values = problem(CubeNet(lambda x: x**3))
    found = InputAscent(rho=RHO).gradient(net, loss_at, values)
    torch.testing.assert_close(found, numerical(net, loss_at, values), rtol=1e-4, atol=1e-9)


def test_finite_differences_approach_the_exact_gradient_for_small_rho() -> None:
    net, loss_at, values = problem(CubeNet(lambda x: x**3))
    errors = []
    for rho in (0.1, 0.05, 0.025):
        exact = InputAscent(rho=rho).gradient(net, loss_at, values)
        differences = InputAscent(rho=rho, second_order="finite_difference").gradient(net, loss_at, values)
        plain = InputAscent(rho=rho, second_order=False).gradient(net, loss_at, values)
        errors.append(float((differences - exact).norm()))
        assert errors[-1] < 0.1 * float((plain - exact).norm())
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.2)  # the next term is rho cubed
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.2)


@pytest.mark.parametrize("options", [{"rho": 0.0}, {"rho": RHO, "second_order": False}], ids=str)
def test_without_the_norm_the_result_is_the_gradient_of_the_loss(options: Any) -> None:
    net, loss_at, values = problem(CubeNet(lambda x: x**3))
    values.requires_grad_()
    (expected,) = torch.autograd.grad(loss_at(values), values)
    assert torch.equal(InputAscent(**options).gradient(net, loss_at, values), expected)


@pytest.mark.parametrize("kernel", ONCE)
def test_a_kernel_without_second_derivative_warns_once_and_uses_finite_differences(kernel: str) -> None:
    smooth = problem(CubeNet(lambda x: x**3))
    net, loss_at, values = problem(CubeNet(lambda x: x**3))
    ascent = InputAscent(rho=RHO)
    ascent.gradient(net, loss_at, values)
    net.kernel = ONCE[kernel]  # kernels are checked in every pass
    with pytest.warns(UserWarning, match="has no second derivative") as said:
        found = ascent.gradient(net, loss_at, values)
    assert len(said) == 1
    torch.testing.assert_close(found, InputAscent(rho=RHO, second_order="finite_difference").gradient(*smooth))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ascent.gradient(net, loss_at, values), found)
        InputAscent(rho=RHO, second_order=False).gradient(net, loss_at, values)


@pytest.mark.parametrize("kernel", TWICE)
def test_a_custom_function_with_a_second_derivative_is_used(kernel: str) -> None:
    found = InputAscent(rho=RHO).gradient(*problem(CubeNet(TWICE[kernel])))
    torch.testing.assert_close(found, InputAscent(rho=RHO).gradient(*problem(CubeNet(lambda x: x**3))))


def test_a_shortage_of_memory_is_no_missing_derivative() -> None:
    net, loss_at, values = problem(CubeNet(lambda x: x**3))
    passes: list[Tensor] = []

    def fail(_: Tensor) -> None:
        raise torch.OutOfMemoryError

    def short_of_memory(values: Tensor) -> Tensor:
        passes.append(values)
        loss = loss_at(values)
        loss.register_hook(fail)
        return loss

    with pytest.raises(torch.OutOfMemoryError):
        InputAscent(rho=RHO).gradient(net, short_of_memory, values)
    assert len(passes) == 1


def test_the_passes_of_a_difference_have_the_same_dropout() -> None:
    # Without it the difference of two ends, 1e-6 apart, is that of two masks.
    made = problem(CubeNet(lambda x: x**3, dropout=0.5))
    found, plain = (InputAscent(rho=1e-6, second_order=way).gradient(*made) for way in ("finite_difference", False))
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_random_state_gradients_and_weights_stay_unchanged(way: Any) -> None:
    net, loss_at, values = problem(CubeNet(lambda x: x**3, dropout=0.5))
    drawn, before = torch.get_rng_state(), [param.clone() for param in net.parameters()]
    InputAscent(rho=RHO, second_order=way).gradient(net, loss_at, values)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(param.grad is None for param in net.parameters())
    torch.testing.assert_close([*net.parameters()], before, rtol=0, atol=0)


@pytest.mark.parametrize("way", WAYS)
def test_a_flat_loss_has_gradient_zero(way: Any) -> None:
    net, _, values = problem(CubeNet(lambda x: x**3))
    weights = list(net.parameters())
    flat = lambda p: sum((0 * each.square().sum() for each in weights), 0 * p.sum())  # noqa: E731
    assert not InputAscent(rho=RHO, second_order=way).gradient(net, flat, values).any()


@pytest.mark.parametrize("way", WAYS)
def test_a_loss_without_an_input_gradient_or_a_network_that_learns_nothing_is_refused(way: Any, refused: Any) -> None:
    net, loss_at, values = problem(CubeNet(lambda x: x**3))
    ascent = InputAscent(rho=RHO, second_order=way)
    for blind in (lambda values: loss_at(values).detach(), lambda values: net.first.weight.sum()):
        with refused("loss", got="no gradient in the network's input"):
            ascent.gradient(net, blind, values)
    with refused("net"):
        ascent.gradient(net.requires_grad_(False), loss_at, values)
