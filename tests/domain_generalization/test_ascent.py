"""The gradient of loss and slope: by two backward passes, by differences, and with kernels that allow but one."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from uumamba.domain_generalization.ascent import Ascent

RHO = 0.05


class Differentiable(Function):
    """x cubed, with a backward pass in torch's own operators."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class Refusing(Differentiable):
    """Says that it has no second derivative."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


class Opaque(Differentiable):
    """As a kernel called from Python: autograd sees nothing of its backward pass."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        with torch.no_grad():
            return 3 * ctx.saved_tensors[0] ** 2 * grad


class PartlyOpaque(Function):
    """A product whose gradient in one factor alone is hidden from autograd."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        with torch.no_grad():
            hidden = grad * a
        return grad * b, hidden


class Passing(Function):
    """The identity, whose backward pass hands the gradient on as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


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
KERNELS = {
    "refusing": Refusing.apply,
    "opaque": Opaque.apply,
    "partly opaque": lambda x: PartlyOpaque.apply(x, x**2),
    "operator": cube,
}
TAKEN = {
    "differentiable": Differentiable.apply,
    "linear": lambda x: Passing.apply(x**3),
    "opaque where nothing learns": lambda x: PartlyOpaque.apply(x**3, torch.ones_like(x)),
}


class Net(nn.Module):
    """Two layers with a cube between them, and dropout where asked for."""

    def __init__(self, kernel: Callable[[Tensor], Tensor], dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)
        self.kernel, self.dropout = kernel, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.dropout(self.kernel(torch.tanh(self.first(x)))))


Problem = tuple[Net, Callable[[Tensor], Tensor], Tensor]


def problem(net: Net) -> Problem:
    """The network in float64, its loss, and values of an additive perturbation."""
    net = net.double()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (10,), generator=generator)
    return net, lambda values: F.cross_entropy(net(x + values), y), torch.zeros_like(x)


def sharpness_aware_loss(net: Net, loss_at: Callable[[Tensor], Tensor], values: Tensor) -> float:
    """L + rho ||grad L||, at values, by a plain backward pass."""
    loss = loss_at(values)
    slopes = torch.autograd.grad(loss, list(net.parameters()))
    return float(loss.detach() + RHO * torch.cat([each.flatten() for each in slopes]).norm())


def numerical(net: Net, loss_at: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """The gradient of that, entry by entry, from its values alone."""
    found = torch.zeros_like(values)
    for index in range(values.numel()):
        ends = []
        for sign in (1, -1):
            moved = values.clone()
            moved.view(-1)[index] += sign * 1e-5
            ends.append(sharpness_aware_loss(net, loss_at, moved))
        found.view(-1)[index] = (ends[0] - ends[1]) / 2e-5
    return found


def test_two_backward_passes_give_the_gradient_of_loss_and_slope() -> None:
    net, loss_at, values = problem(Net(lambda x: x**3))
    found = Ascent(rho=RHO).gradient(net, loss_at, values)
    torch.testing.assert_close(found, numerical(net, loss_at, values), rtol=1e-4, atol=1e-9)


def test_differences_are_close_to_it_and_closer_the_smaller_rho() -> None:
    net, loss_at, values = problem(Net(lambda x: x**3))
    errors = []
    for rho in (0.1, 0.05, 0.025):
        exact = Ascent(rho=rho).gradient(net, loss_at, values)
        differences = Ascent(rho=rho, second_order="finite_difference").gradient(net, loss_at, values)
        plain = Ascent(rho=rho, second_order=False).gradient(net, loss_at, values)
        errors.append(float((differences - exact).norm()))
        assert errors[-1] < 0.1 * float((plain - exact).norm())
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.2)  # the next term is rho cubed
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.2)


@pytest.mark.parametrize("options", [{"rho": 0.0}, {"rho": RHO, "second_order": False}], ids=str)
def test_without_a_second_term_it_is_the_gradient_of_the_loss(options: Any) -> None:
    net, loss_at, values = problem(Net(lambda x: x**3))
    values.requires_grad_()
    (expected,) = torch.autograd.grad(loss_at(values), values)
    assert torch.equal(Ascent(**options).gradient(net, loss_at, values), expected)


def test_a_small_step_along_it_raises_loss_and_slope() -> None:
    net, loss_at, values = problem(Net(lambda x: x**3))
    along = Ascent(rho=RHO).gradient(net, loss_at, values)
    before = sharpness_aware_loss(net, loss_at, values)
    assert sharpness_aware_loss(net, loss_at, values + 1e-3 * along) > before


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_without_second_derivative_is_said_once_and_differences_are_taken(kernel: str) -> None:
    net, loss_at, values = problem(Net(KERNELS[kernel]))
    ascent = Ascent(rho=RHO)
    with pytest.warns(UserWarning, match="has no second derivative .*differences of first ones") as said:
        found = ascent.gradient(net, loss_at, values)
    assert len(said) == 1
    smooth = problem(Net(lambda x: x**3))
    torch.testing.assert_close(found, Ascent(rho=RHO, second_order="finite_difference").gradient(*smooth))
    exact, plain = (Ascent(rho=RHO, second_order=way).gradient(*smooth) for way in (True, False))
    assert (found - exact).norm() < 0.1 * (plain - exact).norm()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(ascent.gradient(net, loss_at, values), found)


def test_a_kernel_without_second_derivative_is_still_said_where_the_first_try_ran_out_of_memory() -> None:
    net, loss_at, values = problem(Net(Opaque.apply))
    ascent = Ascent(rho=RHO)
    passes: list[Tensor] = []

    def short_of_memory(moved: Tensor) -> Tensor:
        passes.append(moved)
        if len(passes) == 2:
            raise torch.OutOfMemoryError
        return loss_at(moved)

    with pytest.raises(torch.OutOfMemoryError):
        ascent.gradient(net, short_of_memory, values)
    with pytest.warns(UserWarning, match="has no second derivative"):
        ascent.gradient(net, short_of_memory, values)


class Product(Function):
    """A matrix product whose gradient in the weight, where that learns, is hidden from autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        with torch.no_grad():
            hidden = grad.T @ x if ctx.needs_input_grad[1] else None
        return grad @ weight, hidden


class KernelLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return Product.apply(input, self.weight) + self.bias


def test_a_layer_of_a_kernel_that_learns_later_is_said_then() -> None:
    net = Net(lambda x: x**3)
    net.first = KernelLinear(6, 8)
    made = problem(net)
    ascent = Ascent(rho=RHO)
    net.first.requires_grad_(False)
    ascent.gradient(*made)  # exact, without a warning, for the hidden gradient is not asked for
    net.first.requires_grad_(True)
    with pytest.warns(UserWarning, match="the backward pass of Product is opaque"):
        found = ascent.gradient(*made)
    torch.testing.assert_close(found, Ascent(rho=RHO, second_order="finite_difference").gradient(*made))


def test_a_kernel_that_comes_into_the_network_later_is_said_then() -> None:
    net = Net(lambda x: x**3)
    made = problem(net)
    ascent = Ascent(rho=RHO)
    ascent.gradient(*made)
    net.kernel = Opaque.apply
    with pytest.warns(UserWarning, match="the backward pass of Opaque is opaque"):
        found = ascent.gradient(*made)
    torch.testing.assert_close(found, Ascent(rho=RHO, second_order="finite_difference").gradient(*made))


@pytest.mark.parametrize("kernel", TAKEN)
def test_a_custom_function_with_a_second_derivative_is_taken_as_it_is(kernel: str) -> None:
    found = Ascent(rho=RHO).gradient(*problem(Net(TAKEN[kernel])))
    torch.testing.assert_close(found, Ascent(rho=RHO).gradient(*problem(Net(lambda x: x**3))))


@pytest.mark.parametrize("kernel", KERNELS)
def test_asked_for_differences_or_nothing_such_a_kernel_is_no_reason_for_a_warning(kernel: str) -> None:
    for way in ("finite_difference", False):
        assert Ascent(rho=RHO, second_order=way).gradient(*problem(Net(KERNELS[kernel]))).isfinite().all()


def test_the_passes_of_a_difference_have_the_same_dropout() -> None:
    # Without it the difference of two ends, 1e-6 apart, is that of two masks.
    net, loss_at, values = problem(Net(lambda x: x**3, dropout=0.5))
    found, plain = (
        Ascent(rho=1e-6, second_order=way).gradient(net, loss_at, values) for way in ("finite_difference", False)
    )
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("way", [True, "finite_difference", False])
def test_no_random_draw_of_the_caller_is_used_up(way: Any) -> None:
    made = problem(Net(lambda x: x**3, dropout=0.5))
    before = torch.get_rng_state()
    Ascent(rho=RHO, second_order=way).gradient(*made)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("way", [True, "finite_difference", False])
def test_a_flat_loss_has_gradient_zero(way: Any) -> None:
    net, _, values = problem(Net(lambda x: x**3))
    flat = partial(_flat, net)
    assert not Ascent(rho=RHO, second_order=way).gradient(net, flat, values).any()


def _flat(net: Net, values: Tensor) -> Tensor:
    return sum((0 * each.square().sum() for each in net.parameters()), 0 * values.sum())


def test_no_gradient_is_left_in_the_parameters_and_no_weight_moves() -> None:
    net = Net(lambda x: x**3)
    made = problem(net)
    before = [param.clone() for param in net.parameters()]
    for way in (True, "finite_difference", False):
        Ascent(rho=RHO, second_order=way).gradient(*made)
    assert all(param.grad is None for param in net.parameters())
    assert all(torch.equal(now, then) for now, then in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rho": -1.0}, "rho must be finite and not negative, got -1"),
        ({"rho": float("nan")}, "rho must be finite and not negative, got nan"),
        ({"rho": 0.1, "second_order": "newton"}, "got 'newton'"),
    ],
)
def test_options_out_of_range_are_refused(options: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Ascent(**options)
