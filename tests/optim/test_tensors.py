import pytest
import torch
from torch import nn

from uumamba.optim.tensors import add_gradients, global_norm, projection_factor, take_gradients

EPS = torch.finfo(torch.float32).eps


def test_norm_of_bfloat16_is_not_rounded_to_bfloat16() -> None:
    # 4 tensors of 1027 ones: sqrt(4108) = 64.09, between the bfloat16 numbers 64 and 64.5
    norm = global_norm([torch.ones(1027, dtype=torch.bfloat16) for _ in range(4)])
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(4108**0.5, rel=1e-6)


def test_norm_over_types_of_numbers_is_the_norm_of_all() -> None:
    tensors = [torch.tensor([2.0], dtype=dtype) for dtype in (torch.bfloat16, torch.float32, torch.float64)]
    assert global_norm([*tensors, torch.tensor([[2.0]])]).item() == 4
    assert global_norm([]) == 0


@pytest.mark.parametrize("sizes", [[256] * 1500, [1, 40_000, 1024, 3, 1025], [100_000] * 3])
@pytest.mark.parametrize("join_small", [True, False])
def test_norm_equals_float64_whatever_the_sizes(sizes: list[int], join_small: bool) -> None:
    tensors = [torch.randn(size) for size in sizes]
    exact = torch.linalg.vector_norm(torch.cat(tensors).double()).item()
    # a sum of n squares in any order is at most n roundings off, and by chance about sqrt(n); the root halves that
    bound = EPS * sum(sizes) ** 0.5
    assert global_norm(tensors, join_small=join_small).item() == pytest.approx(exact, rel=bound)
    rounded = [tensor.bfloat16() for tensor in tensors]
    exact = torch.linalg.vector_norm(torch.cat(rounded).double()).item()
    assert global_norm(rounded, join_small=join_small).item() == pytest.approx(exact, rel=bound)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_one_entry_that_is_not_finite_shows(value: float) -> None:
    assert not torch.isfinite(global_norm([torch.ones(3), torch.tensor([1.0, value])]))
    assert not torch.isfinite(global_norm([torch.ones(3), torch.full((2000,), value)]))
    assert not abs(projection_factor([torch.tensor([value])], onto=[torch.tensor([1.0])])) < float("inf")


def test_the_rest_of_a_projection_is_perpendicular() -> None:
    one, other = ([torch.randn(3, 4, dtype=torch.float64), torch.randn(5, dtype=torch.float64)] for _ in range(2))
    factor = projection_factor(one, onto=other)
    left = sum(((a - factor * b) * b).sum() for a, b in zip(one, other, strict=True))
    assert left.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-170, 1e160])
def test_lengths_whose_squares_are_no_numbers_do_no_harm(size: float) -> None:
    onto = [torch.tensor([size], dtype=torch.float64)]
    assert projection_factor([torch.tensor([0.0], dtype=torch.float64)], onto=onto) == 0
    assert projection_factor([], onto=[]) == 0


def test_a_projection_in_bfloat16_is_added_in_float32() -> None:
    # 4108 products of 1; bfloat16 would stop counting at 256
    ones = [torch.ones(1027, dtype=torch.bfloat16) for _ in range(4)]
    assert projection_factor(ones, onto=ones) == pytest.approx(1, rel=1e-6)


def test_gradients_taken_can_be_added_again() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    params[0].grad, params[1].grad = torch.ones(2), torch.ones(2)
    taken = take_gradients(params)
    assert all(param.grad is None for param in params)
    params[1].grad = torch.full((2,), 2.0)
    add_gradients(params, taken)
    found = [None if param.grad is None else param.grad.tolist() for param in params]
    assert found == [[1.0, 1.0], [3.0, 3.0], None]
