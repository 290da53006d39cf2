"""Linear recurrence against a loop and finite differences."""

import pytest
import torch

from uumamba.ops.linear_recurrence import linear_recurrence


def in_chunks(sequence, steps):
    """Reorder ``(length, ...)`` as ``(steps, chunks, ...)``."""
    return sequence.unflatten(0, (-1, steps)).transpose(0, 1).contiguous()


@pytest.mark.parametrize("decay", [None, 0.0, 1.0], ids=["random decay", "decay 0", "decay 1"])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 12])
def test_recurrence_equals_a_loop_for_any_chunks(steps, decay):
    a, x = torch.rand(2, 12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = a if decay is None else torch.full_like(a, decay)
    state, expected = torch.zeros(5, dtype=torch.float64), []
    for a_l, x_l in zip(a, x, strict=True):
        state = a_l * state + x_l
        expected.append(state)
    found = linear_recurrence(in_chunks(a, steps), in_chunks(x, steps)).transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize(("steps", "chunks"), [(1, 4), (4, 1), (2, 3), (3, 2)])
def test_first_and_second_gradients_equal_finite_differences(steps, chunks):
    draw = torch.Generator().manual_seed(0)
    inputs = tuple(torch.rand(steps, chunks, 2, dtype=torch.float64, generator=draw).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(linear_recurrence, inputs)
    assert torch.autograd.gradgradcheck(linear_recurrence, inputs)
