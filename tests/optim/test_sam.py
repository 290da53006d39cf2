from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from uumamba.losses import CrossEntropyLoss, FocalLoss, SoftDiceLoss, UncertaintyWeightedLoss
from uumamba.optim import SAM

Problem = Callable[..., tuple[nn.Module, list[tuple[Tensor, Tensor]]]]


def test_one_step_by_hand() -> None:
    # L = w1^2 + w2^2 at (3, 4): g = (6, 8), eps = 0.5 * (0.6, 0.8), gradient there (6.6, 8.8)
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    loss = SAM([weight], partial(SGD, lr=0.1), rho=0.5).step(lambda: weight.pow(2).sum())
    assert loss == 25
    torch.testing.assert_close(weight.detach(), torch.tensor([3 - 0.66, 4 - 0.88]))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.05)]
)
@pytest.mark.parametrize("rho", [0.05, 2.0])
def test_the_perturbation_is_rho_long_and_along_the_gradient(
    problem: Problem, dtype: torch.dtype, tolerance: float, rho: float
) -> None:
    net, [(x, y), *_] = problem(dtype=dtype)
    seen = []

    def closure() -> Tensor:
        seen.append(nn.utils.parameters_to_vector(net.parameters()).detach().double())
        return F.mse_loss(net(x), y)

    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(F.mse_loss(net(x), y), list(net.parameters()))])
    SAM(net.parameters(), partial(SGD, lr=0.1), rho=rho).step(closure)
    eps = seen[1] - seen[0]
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

    for _ in range(3):
        optimizer.step(closure)
    for first, second in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(first[0], second[0])
        assert not torch.equal(first[1], second[1])
    assert (loss.log_variances != 0).all()
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    assert id(loss.log_variances) in held
