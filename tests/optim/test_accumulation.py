"""Accumulated micro-batches against gradients written out with torch.func."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from uumamba.optim import FirstPass, Rule, SharpnessAware
from uumamba.optim.sam import follow_gradient

LR, RHO = 0.1, 0.3
Weights = dict[str, Tensor]


def average(first: FirstPass, second: Sequence[Tensor]) -> list[Tensor]:
    return [(one + two) / 2 for one, two in zip(first.grads, second, strict=True)]


def mean(gradients: Sequence[Weights]) -> Weights:
    return {name: torch.stack([gradient[name] for gradient in gradients]).mean(0) for name in gradients[0]}


@pytest.mark.parametrize("accumulation", ["micro", "full"])
@pytest.mark.parametrize("mix", [None, average])
def test_a_step_over_three_micro_batches_has_its_closed_form(
    training: Any, accumulation: str, mix: Callable[..., Any] | None
) -> None:
    run = training("Plain", middle=partial(nn.LayerNorm, 8))
    batches, net = run.batches(3), run.net
    before = {name: param.detach().clone() for name, param in net.named_parameters()}

    def gradient(weights: Weights, block: Sequence[Any]) -> Weights:
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        logits = [torch.func.functional_call(net, leaves, (batch["image"],)) for batch in block]
        losses = [F.cross_entropy(each, batch["label"]) for each, batch in zip(logits, block, strict=True)]
        return dict(zip(leaves, torch.autograd.grad(torch.stack(losses).mean(), list(leaves.values())), strict=True))

    found = []
    for block in [batches] if accumulation == "full" else [[batch] for batch in batches]:
        first = gradient(before, block)
        norm = torch.cat([part.flatten() for part in first.values()]).norm()
        second = gradient({name: before[name] + RHO * first[name] / norm for name in before}, block)
        found.append(second if mix is None else mean([first, second]))
    optimizer = SharpnessAware(
        net.parameters(),
        partial(SGD, lr=LR),
        rule=Rule(direction=follow_gradient, mix=mix),
        group_defaults={"rho": RHO},
        accumulation=accumulation,
    )
    losses = [run.closure(batch)()[0].detach() for batch in batches]
    loss = optimizer.step(
        [run.closure(batch) for batch in batches], at_weights=lambda: sum(p.pow(2).sum() for p in net.parameters())
    )
    torch.testing.assert_close(loss, torch.stack(losses).mean())
    for name, param in net.named_parameters():
        torch.testing.assert_close(param.detach(), before[name] - LR * (mean(found)[name] + 2 * before[name]))
