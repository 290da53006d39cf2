import pytest
import torch
from torch import nn

from uumamba.optim.foreach import add_gradients, global_norm, take_gradients


def test_norm_of_bfloat16_is_not_rounded_to_bfloat16() -> None:
    # 4 tensors of 1027 ones: sqrt(4108) = 64.09, between the bfloat16 numbers 64 and 64.5
    norm = global_norm([torch.ones(1027, dtype=torch.bfloat16) for _ in range(4)])
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(4108**0.5, rel=1e-6)


def test_norm_over_kinds_of_numbers_is_the_norm_of_all() -> None:
    tensors = [torch.tensor([2.0], dtype=dtype) for dtype in (torch.bfloat16, torch.float32, torch.float64)]
    assert global_norm([*tensors, torch.tensor([[2.0]])]).item() == 4


@pytest.mark.parametrize("sizes", [[256] * 1500, [1, 40_000, 1024, 3, 1025], [100_000] * 3])
def test_norm_equals_float64_whatever_the_sizes(sizes: list[int]) -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(size) for size in sizes]
    exact = torch.linalg.vector_norm(torch.cat(tensors).double()).item()
    assert global_norm(tensors).item() == pytest.approx(exact, rel=2e-6)  # one thread's sum of 384,000 is 1.6e-6 off
    assert global_norm([tensor.bfloat16() for tensor in tensors]).item() == pytest.approx(exact, rel=1e-3)


def test_norm_of_nothing_is_zero() -> None:
    assert global_norm([]) == 0


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_one_entry_that_is_not_finite_shows(value: float) -> None:
    assert not torch.isfinite(global_norm([torch.ones(3), torch.tensor([1.0, value])]))
    assert not torch.isfinite(global_norm([torch.ones(3), torch.full((2000,), value)]))


def test_gradients_taken_can_be_added_again() -> None:
    params = [nn.Parameter(torch.ones(2)) for _ in range(3)]
    params[0].grad, params[1].grad = torch.ones(2), torch.ones(2)
    taken = take_gradients(params)
    assert all(param.grad is None for param in params)
    params[1].grad = torch.full((2,), 2.0)
    add_gradients(params, taken)
    found = [None if param.grad is None else param.grad.tolist() for param in params]
    assert found == [[1.0, 1.0], [3.0, 3.0], None]
