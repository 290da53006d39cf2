from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from uumamba.optim import StaleSAM


@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_twenty_steps_equal_the_formula(equals_formula: Any, max_grad_norm: float | None) -> None:
    # clipping shortens the gradient that is kept, which does not change its direction
    def formula(weights: Tensor, gradients: Any) -> Tensor:
        last = None
        for gradient in gradients:
            last = gradient(weights if last is None else weights + 0.3 * last / last.norm())
            clipped = last if max_grad_norm is None else last * min(1.0, max_grad_norm / (float(last.norm()) + 1e-6))
            weights = weights - 0.1 * clipped
        return weights

    equals_formula(formula, partial(StaleSAM, rho=0.3, max_grad_norm=max_grad_norm), partial(SGD, lr=0.1))


def test_a_skipped_step_keeps_the_direction_of_the_one_before_in_the_same_buffer(training: Any) -> None:
    run = training("StaleSAM", partial(SGD, lr=0.0), rho=0.3)
    [batch] = run.batches(1)
    seen, addresses = [], []
    for factor in (1.0, float("inf"), 1.0):
        run.step(run.closure(batch, lambda call, logits, factor=factor: logits * factor))
        seen += run.seen
        addresses.append([kept["last_gradient"].data_ptr() for kept in run.optimizer.state.values()])
    assert torch.equal(seen[1], seen[2])
    assert (seen[1] - seen[0]).norm().item() == pytest.approx(0.3, rel=1e-9)
    assert addresses[0] == addresses[2]
    assert not set(addresses[0]) & {param.grad.data_ptr() for param in run.net.parameters()}, "a base may change them"
