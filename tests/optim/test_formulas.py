"""Twenty steps of every optimizer against its paper's formula, in float64.

A formula returns the gradient to descend with, from the weights as one vector and the gradient as a function of such a
vector. A torch optimizer of that vector takes the step. The learning rate grows from step to step.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim import SGD, Adam, lr_scheduler

from uumamba import optim
from uumamba.optim import AdaptiveTrigger, Rule
from uumamba.optim.sam import follow_gradient

RHO, STEPS = 0.2, 20
SIZES = [40, 8, 24, 3]  # weights, biases, weights, biases
HAS_ONE_AXIS = torch.cat([torch.full((size,), bool(index % 2)) for index, size in enumerate(SIZES)])
MOMENTUM = partial(SGD, lr=0.1, momentum=0.9)
Gradient = Callable[[Tensor], Tensor]
Memory = dict[str, Any]


def sam(w: Tensor, gradient: Gradient, memory: Memory) -> Tensor:
    g = gradient(w)
    return gradient(w + RHO * g / g.norm())


def asam(w: Tensor, gradient: Gradient, memory: Memory, *, eta: float, normalize_bias: bool) -> Tensor:
    g, t = gradient(w), w.abs() + eta
    t = t if normalize_bias else torch.where(HAS_ONE_AXIS, 1.0, t)
    return gradient(w + RHO * t**2 * g / (t * g).norm())


def friendly(w: Tensor, gradient: Gradient, memory: Memory) -> Tensor:
    g = gradient(w)
    mean = memory.get("mean")
    new = g if mean is None else g - 0.8 * mean
    memory["mean"] = g if mean is None else 0.7 * mean + 0.3 * g
    return gradient(w + RHO * new / new.norm())


def gsam(w: Tensor, gradient: Gradient, memory: Memory) -> Tensor:
    # The learning rate is 0.005 to 0.1; below lr_min 0.02 the radius stays at rho_min 0.1.
    radius = max(0.1, 0.1 + (0.5 - 0.1) * (memory["lr"] - 0.02) / (0.1 - 0.02))
    g = gradient(w)
    g_p = gradient(w + radius * g / g.norm())
    cosine = (g @ g_p) / (g.norm() * g_p.norm())
    return g_p - 0.7 * (g - cosine * g.norm() * g_p / g_p.norm())


def sagm(w: Tensor, gradient: Gradient, memory: Memory, *, alpha: float) -> Tensor:
    g = gradient(w)
    return (g + gradient(w + (RHO / g.norm() - alpha) * g)) / 2


def msam(w: Tensor, gradient: Gradient, memory: Memory) -> Tensor:
    v = memory["base"].get("momentum_buffer", memory["base"].get("exp_avg"))
    return gradient(w if v is None else w - RHO * v / v.norm())


def stale(w: Tensor, gradient: Gradient, memory: Memory, *, bound: float | None) -> Tensor:
    # Clipping shortens the stored gradient, which does not change its direction.
    last = memory.get("last")
    memory["last"] = g = gradient(w if last is None else w + RHO * last / last.norm())
    return g if bound is None else g * min(1.0, bound / (float(g.norm()) + 1e-6))


def fires(g: Tensor, memory: Memory) -> bool:
    squared, verdicts = float(g @ g), memory.setdefault("verdicts", [])
    memory["mean"] = mean = 0.8 * memory.get("mean", 0.0) + 0.2 * squared
    memory["variance"] = 0.8 * memory.get("variance", 0.0) + 0.2 * (squared - mean) ** 2
    verdicts.append(squared >= mean + (0.5 - len(verdicts) / STEPS) * memory["variance"] ** 0.5)
    return verdicts[-1]


def triggered_sam(w: Tensor, gradient: Gradient, memory: Memory) -> Tensor:
    return sam(w, gradient, memory) if fires(gradient(w), memory) else gradient(w)


def looksam(w: Tensor, gradient: Gradient, memory: Memory, *, k: int | None) -> Tensor:
    g = gradient(w)
    if fires(g, memory) if k is None else memory["step"] % k == 0:
        found = gradient(w + RHO * g / g.norm())
        memory["orthogonal"] = found - (found @ g) / (g @ g) * g
        return found
    return g + 0.7 * g.norm() / memory["orthogonal"].norm() * memory["orthogonal"]


TRIGGER = AdaptiveTrigger(total_steps=STEPS, start=0.5, end=-0.5, decay=0.8)
TRIGGERED_SAM = partial(
    optim.SharpnessAware,
    rule=Rule(direction=follow_gradient, is_due=TRIGGER, is_shared=True),
    group_defaults={"rho": RHO},
)
GSAM_OPTIONS = {"rho": 0.5, "rho_min": 0.1, "lr_max": 0.1, "lr_min": 0.02, "alpha": 0.7}
# A formula, an optimizer, its base, and the initial scale of a gradient scaler.
CASES: list[tuple[Any, Any, Any, float | None]] = [
    (sam, partial(optim.SAM, rho=RHO), partial(MOMENTUM, weight_decay=1e-3), None),
    *(
        (partial(asam, **options), partial(optim.ASAM, rho=RHO, **options), SGD, None)
        for options in ({"eta": eta, "normalize_bias": each} for eta in (0.0, 0.01) for each in (False, True))
    ),
    (friendly, partial(optim.FriendlySAM, rho=RHO, sigma=0.8, lam=0.7), MOMENTUM, 2.0),
    (gsam, partial(optim.GSAM, **GSAM_OPTIONS), partial(SGD, lr=0.1), None),
    *(
        (partial(sagm, alpha=alpha), partial(optim.SAGM, rho=RHO, alpha=alpha), MOMENTUM, scale)
        for alpha in (0.0, 0.1)
        for scale in (None, 1024.0)
    ),
    (msam, partial(optim.MSAM, rho=RHO), MOMENTUM, None),
    (msam, partial(optim.MSAM, rho=RHO), partial(Adam, lr=0.01), None),
    *(
        (partial(stale, bound=bound), partial(optim.StaleSAM, rho=RHO, max_grad_norm=bound), partial(SGD, lr=0.1), None)
        for bound in (None, 0.1)
    ),
    *((partial(looksam, k=k), partial(optim.LookSAM, rho=RHO, k=k), MOMENTUM, None) for k in (1, 3, 5)),
    *(
        (partial(looksam, k=None), partial(optim.LookSAM, rho=RHO, trigger=TRIGGER), MOMENTUM, scale)
        for scale in (None, 2.0)
    ),
    (triggered_sam, TRIGGERED_SAM, partial(SGD, lr=0.1), None),
]


NAMES = [getattr(formula, "func", formula).__name__ for formula, *_ in CASES]


@pytest.mark.parametrize(("formula", "make", "base", "scale"), CASES, ids=NAMES)
def test_twenty_steps_equal_the_formula(formula: Any, make: Any, base: Any, scale: float | None) -> None:
    torch.manual_seed(7)
    net, other = (nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double() for _ in "ab")
    other.load_state_dict(net.state_dict())
    weights = nn.Parameter(parameters_to_vector(other.parameters()).detach())
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    optimizer, reference, memory = make(net.parameters(), base, scaler=scaler), base([weights]), {}
    schedules = [lr_scheduler.LambdaLR(each, lambda step: (step + 1) / STEPS) for each in (optimizer, reference)]

    def gradient(x: Tensor, y: Tensor, vector: Tensor) -> Tensor:
        vector_to_parameters(vector, other.parameters())
        found = torch.autograd.grad(F.mse_loss(other(x), y), list(other.parameters()))
        return torch.cat([part.flatten() for part in found])

    for step in range(STEPS):
        x, y = torch.randn(6, 5).double(), torch.randn(6, 3).double()
        optimizer.step(lambda x=x, y=y: F.mse_loss(net(x), y))
        memory |= {"step": step, "lr": reference.param_groups[0]["lr"], "base": reference.state[weights]}
        weights.grad = formula(weights.detach(), partial(gradient, x, y), memory)
        reference.step()
        for schedule in schedules:
            schedule.step()
    found = parameters_to_vector(net.parameters()).detach()
    torch.testing.assert_close(found, weights.detach(), rtol=1e-9, atol=1e-11)
    assert "verdicts" not in memory or 3 < sum(memory["verdicts"]) < 17
    assert scaler is None or scaler.get_scale() == scale * 2.0**6
