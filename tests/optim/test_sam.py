from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, AdamW

from uumamba.losses import CrossEntropyLoss, FocalLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.optim import SAM


def test_one_step_by_hand() -> None:
    # L = w1^2 + w2^2 at (3, 4): g = (6, 8), eps = 0.5 * (0.6, 0.8), gradient there (6.6, 8.8)
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    loss = SAM([weight], partial(SGD, lr=0.1), rho=0.5).step(lambda: weight.pow(2).sum())
    assert loss == 25
    torch.testing.assert_close(weight.detach(), torch.tensor([3 - 0.66, 4 - 0.88]))


def test_twenty_steps_equal_the_formula(equals_formula: Any) -> None:
    def formula(weights: Tensor, gradients: Any) -> Tensor:
        velocity = torch.zeros_like(weights)
        for gradient in gradients:
            g = gradient(weights)
            velocity = 0.9 * velocity + gradient(weights + 0.2 * g / g.norm()) + 1e-3 * weights
            weights = weights - 0.05 * velocity
        return weights

    equals_formula(formula, partial(SAM, rho=0.2), partial(SGD, lr=0.05, momentum=0.9, weight_decay=1e-3))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_the_perturbation_is_rho_long_and_along_the_gradient(
    training: Any, dtype: torch.dtype, tolerance: float, rho: float
) -> None:
    run = training("SAM", AdamW, dtype=dtype, rho=rho)
    [batch] = run.batches(1)
    loss = F.cross_entropy(run.net(batch["image"]), batch["label"])
    gradient = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(run.net.parameters()))])
    run.step(run.closure(batch))
    eps = run.seen[1].double() - run.seen[0].double()
    assert eps.norm().item() == pytest.approx(rho, rel=tolerance)
    assert F.cosine_similarity(eps, gradient.double(), dim=0).item() == pytest.approx(1, rel=tolerance)


def test_loss_weights_learn_in_the_same_step_and_are_not_climbed() -> None:
    net = nn.Conv2d(1, 4, 3, padding=1)
    loss = UncertaintyWeightedLoss({"region": SoftDiceLoss(), "distribution": CrossEntropyLoss(), "pixel": FocalLoss()})
    groups = [{"params": net.parameters()}, {"params": loss.parameters(), "weight_decay": 0.0, "perturb": False}]
    optimizer = SAM(groups, partial(SGD, lr=0.1, weight_decay=1e-2), rho=0.5)
    image, label = torch.randn(2, 1, 8, 8), torch.randint(0, 4, (2, 1, 8, 8))
    seen = []

    def closure() -> Tensor:
        seen.append((loss.log_variances.detach().clone(), net.weight.detach().clone()))
        return loss(net(image), label)

    optimizer.step(closure)
    assert torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][1], seen[1][1])
    assert (loss.log_variances != 0).all()
