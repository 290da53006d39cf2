"""Smoothed forget losses: randomised smoothing, gradient penalty, curvature regularisation."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from uumamba.runtime.options import NonNegative, Positive, PositiveInt, check_options
from uumamba.runtime.seeds import generator_for
from uumamba.unlearning.forget_losses import NetLoss
from uumamba.unlearning.weight_passes import SecondOrder, WeightPasses, add_scaled, scale, unit

RADIUS = 0.001
"""Relative distance of finite differences.

After unlearning of digits in float32, the cosine to the exact Hessian product was 0.997 (three convolutions with batch
norms) and 0.9998 (two layers) at 0.001, 0.89 and 0.99 at 0.01, and 0.99 and 1.0 at 0.0001.
"""


class Smoothing(ABC):
    """Base of the smoothed forms of a forget loss.

    A smoothing is called inside an optimizer's closure and returns a scalar for the backward pass. Its gradients are
    computed in the call, one graph at a time; so the scalar has no second derivative. Each composes with every forget
    loss and optimizer; for smoothing by SAM use :class:`uumamba.optim.SAM` itself. The loss, its derivatives and the
    norms cover the network's trainable parameters. Passes change neither weights nor buffers, and share their dropout
    draws.
    """

    @abstractmethod
    def __call__(self, net: nn.Module, loss: NetLoss, *, step: int = 0) -> Tensor:
        """Return the smoothed loss.

        Args:
            net: the network.
            loss: the forget loss of one batch as a function of the network.
            step: number of the step, a key of random draws.
        """


class RandomizedSmoothing(Smoothing):
    r"""Mean forget loss at randomly perturbed weights.

    .. math:: l_s(w) = \frac{1}{n} \sum_{j=1}^n l_f(w + \sigma z_j), \qquad z_j \sim N(0, I)

    One pass per draw. The draws of a step are the same for all its micro-batches and for both passes of an optimizer
    such as SAM; a parameter's draw depends on its name, not on other parameters.

    Args:
        sigma: :math:`\sigma`, in the units of the weights; 0 is the loss itself.
        draws: n.
        seed: seed of the draws.

    Raises:
        UsageError: an option is out of range.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> loss = RandomizedSmoothing(sigma=0.1)(net, lambda net: 2 * net.weight.sum())
        >>> loss.backward()
        >>> net.weight.grad
        tensor([[2.]])

    References:
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks*, ICML 2025, arXiv:2502.05374.
        Differs from the paper: none. Differs from its code: with accumulation every micro-batch counts, and weights are
        not changed in place, so they do not drift.
    """

    @check_options
    def __init__(self, *, sigma: NonNegative, draws: PositiveInt = 3, seed: int = 0) -> None:
        self.sigma, self.draws, self.seed = sigma, draws, seed

    def __call__(self, net: nn.Module, loss: NetLoss, *, step: int = 0) -> Tensor:
        passes = WeightPasses(net, loss)
        total, gradients = passes.differentiate(self._draw(passes, step, 0))
        for index in range(1, self.draws):
            value, found = passes.differentiate(self._draw(passes, step, index))
            total, gradients = total + value, add_scaled(gradients, found, 1)
        return passes.as_scalar(total / self.draws, scale(gradients, 1 / self.draws))

    def _draw(self, passes: WeightPasses, step: int, index: int) -> list[Tensor]:
        """Return the offsets of one draw, the same on every device."""
        found = []
        for name, param in passes.params.items():
            generator = generator_for(self.seed, "randomised smoothing", step, index, name)
            found.append(self.sigma * torch.randn(param.shape, generator=generator).to(param))
        return found


class GradientPenalty(Smoothing):
    r"""Forget loss plus the norm of its gradient.

    .. math:: l_s = l_f + c\, \lVert \nabla l_f \rVert_2, \qquad
        \nabla l_s = g + c\, H u, \quad u = \frac{g}{\lVert g \rVert_2}

    with g and H gradient and Hessian at the weights. The exact Hessian product needs a second derivative of every
    operation. The finite difference needs none, and costs as much as SAM:

    .. math:: \nabla l_s \approx \Big(1 - \frac{c}{r}\Big)\, g(w) + \frac{c}{r}\, g(w + r u), \qquad
        r = \mathrm{radius} \cdot \lVert w \rVert_2

    A gradient of 0 adds nothing. With several micro-batches the penalty is the mean of the penalties of each.

    Args:
        weight: c. Choose it by the quality on retain data.
        second_order: ``"exact"``, or ``"finite_difference"`` for kernels without a second derivative.
        radius: distance of the finite difference relative to the norm of the weights.

    Raises:
        UsageError: an option is out of range; or, from the call, an operation has no second derivative, or weights are
            less precise than float32 with finite differences.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(net.weight, 3.0)
        >>> loss = GradientPenalty(weight=0.5)(net, lambda net: (net.weight**2).sum())
        >>> loss.backward()
        >>> loss.item(), net.weight.grad  # 9 + 0.5 * 6, and 6 + 0.5 * 2
        (12.0, tensor([[7.]]))

    References:
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks*, ICML 2025, arXiv:2502.05374.
        Zhao et al., *Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning*, ICML 2022,
        arXiv:2202.03599 (the finite difference).
        Differs from the paper: none. Differs from its code: the penalty has a gradient; there it is a number without
        one.
    """

    @check_options
    def __init__(self, *, weight: NonNegative, second_order: SecondOrder = "exact", radius: Positive = RADIUS) -> None:
        self.weight, self.second_order, self.radius = weight, second_order, radius

    def __call__(self, net: nn.Module, loss: NetLoss, *, step: int = 0) -> Tensor:
        passes = WeightPasses(net, loss)
        if self.second_order == "exact":
            value, gradients, product = passes.multiply_hessian(lambda gradients: unit(gradients)[1])
            norm = unit(gradients)[0]
        else:
            value, gradients = passes.differentiate()
            norm, direction = unit(gradients)
            product = passes.difference_hessian(direction, gradients, radius=self.radius)
        return passes.as_scalar(value + self.weight * norm, add_scaled(gradients, product, self.weight))


class CurvatureRegularization(Smoothing):
    r"""Forget loss plus the change of its gradient along itself.

    .. math:: l_s = l_f + c\, \lVert g(w + \mu \hat g) - g(w) \rVert_2, \qquad
        \hat g = \frac{g(w)}{\lVert g(w) \rVert_2}

    with :math:`\hat g` a constant in the derivative:

    .. math:: \nabla l_s = g(w) + c\, \big(H(w + \mu \hat g) - H(w)\big)\, v, \qquad
        v = \frac{g(w + \mu \hat g) - g(w)}{\lVert g(w + \mu \hat g) - g(w) \rVert_2}

    Three passes, two of them with a second backward pass; with finite differences four passes. A gradient of 0, or a
    change of 0, adds nothing. With several micro-batches the penalty is the mean of the penalties of each.

    Args:
        weight: c. Choose it by the quality on retain data.
        mu: :math:`\mu`, in the units of the weights.
        second_order: ``"exact"``, or ``"finite_difference"`` for kernels without a second derivative.
        radius: distance of the finite difference relative to the norm of the weights.

    Raises:
        UsageError: as for :class:`GradientPenalty`.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(net.weight, 1.0)
        >>> loss = CurvatureRegularization(weight=2.0, mu=1.0)(net, lambda net: (net.weight**3).sum())
        >>> loss.backward()
        >>> loss.item(), net.weight.grad  # 1 + 2 * (12 - 3), and 3 + 2 * (12 - 6)
        (19.0, tensor([[15.]]))

    References:
        Fan et al., *Towards LLM Unlearning Resilient to Relearning Attacks*, ICML 2025, arXiv:2502.05374.
        Moosavi-Dezfooli et al., *Robustness via Curvature Regularization, and Vice Versa*, CVPR 2019, arXiv:1811.09716.
        Differs from the paper: none. Differs from its code: the penalty has a gradient; there it is a number without
        one.
    """

    @check_options
    def __init__(
        self,
        *,
        weight: NonNegative,
        mu: Positive = 0.01,
        second_order: SecondOrder = "exact",
        radius: Positive = RADIUS,
    ) -> None:
        self.weight, self.mu = weight, mu
        self.second_order, self.radius = second_order, radius

    def __call__(self, net: nn.Module, loss: NetLoss, *, step: int = 0) -> Tensor:
        passes = WeightPasses(net, loss)
        value, gradients = passes.differentiate()
        offsets = scale(unit(gradients)[1], self.mu)
        if self.second_order == "exact":
            _, further, ahead = passes.multiply_hessian(
                lambda further: unit(add_scaled(further, gradients, -1))[1], offsets
            )
            norm, direction = unit(add_scaled(further, gradients, -1))
            _, _, here = passes.multiply_hessian(lambda _: direction)
        else:
            _, further = passes.differentiate(offsets)
            norm, direction = unit(add_scaled(further, gradients, -1))
            ahead = passes.difference_hessian(direction, further, offsets, radius=self.radius)
            here = passes.difference_hessian(direction, gradients, radius=self.radius)
        change = add_scaled(ahead, here, -1)
        return passes.as_scalar(value + self.weight * norm, add_scaled(gradients, change, self.weight))
