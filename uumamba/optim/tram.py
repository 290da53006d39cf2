"""Trust-region-aware minimisation."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from uumamba.optim.asam import along_scaled_gradient
from uumamba.optim.averaging import average_over_ranks
from uumamba.optim.draws import SharedDraws
from uumamba.optim.engine import SharpnessAware
from uumamba.optim.foreach import global_norm
from uumamba.optim.options import EngineOptions
from uumamba.optim.outputs import logits_of
from uumamba.optim.rules import Climb, Memory, Rule, Slope
from uumamba.optim.trust_region import EarlierWeights, Form, InputNoise, divergence

Trust = Literal["previous", "initial", "noise", "fisher"]


class TRAM(SharpnessAware):
    r"""ASAM whose radius is no constant: as far as the network's own answers have moved, or move under noise.

    .. math:: \epsilon = \rho\, d \frac{T_w^2\, g}{\lVert T_w g \rVert_2}, \qquad T_w = |w|

    for every perturbed parameter, so :math:`\lVert T_w^{-1} \epsilon \rVert_2 = \rho d`. The distance d is a mean
    :func:`divergence <uumamba.optim.trust_region.divergence>` of the batch's outputs under the weights w, by ``trust``:

    - ``"previous"``: from those under the weights of the step before, :math:`\mathrm{KL}(p_{w_{t-1}} \Vert p_w)`;
    - ``"initial"``: from those under the weights before the first step, for fine-tuning;
    - ``"noise"``: from those for a shaken input, :math:`\mathrm{KL}(p(x + z) \Vert p(x))`, z from
      :math:`N(0, \sigma^2)`.

    These take three forward and two backward passes, and the closure must return logits beside the loss (per sample,
    per voxel or per token). The first two keep one more copy of the weights, all trained ones, which is saved with the
    optimizer. Before the first step there is none, so d is 0 (or ``min_distance``) there: a plain step in two passes.

    - ``"fisher"`` takes two of each, asks no logits, and runs its first pass at the shaken input. With g the gradient
      found there, and :math:`F = g^2` an estimate of the Fisher information's diagonal,

    .. math:: \epsilon = \rho\, \gamma \frac{(1 + \eta F)^{-1} g}{\sqrt{g^\top (1 + \eta F)^{-1} g}}

    The step then returns the loss, and running statistics see the batch, at the shaken input.

    Edge cases. A distance that is not finite skips the step, as a gradient does. Accumulated micro-batches have a
    distance each, from the same earlier weights; ``accumulation="full"`` and ``perturbation="global"`` take the mean
    over closures and ranks. The look that only the distance needs repeats the random numbers that torch drew in the
    first pass, so both drop out the same units, and training goes on with the numbers it would have had without it.
    Closures that draw from elsewhere, or run backward themselves, are not for these forms. Tokens of padding count like
    any other.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        trust: what the distance is taken from.
        rho: factor of the distance, for groups that set none; 1 is the paper's.
        sigma: standard deviation of the noise, in the input's units.
        noise_at: a submodule whose output takes the noise, such as an embedding; None: the first floating-point input
            of ``net``.
        max_distance: no greater distance is taken; None does not bound it.
        min_distance: nor a smaller one.
        eta: how much the Fisher information counts.
        gamma: the distance of ``"fisher"``.
        form: what makes probabilities of logits, ``"softmax"`` over classes or ``"sigmoid"`` of each channel.
        seed: of the noise.
        engine: what every member takes, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Attributes:
        distance: that of the last climb, a scalar tensor; None before it and for ``"fisher"``.

    Raises:
        ValueError: an option is out of range, or not one of this ``trust``.
        UsageError: from ``step``: the closure returned no logits, or called nothing that takes the noise.

    Example:
        >>> from functools import partial
        >>> net, x, y = nn.Linear(2, 3), torch.eye(2), torch.tensor([0, 2])
        >>> optimizer = TRAM(net.parameters(), partial(torch.optim.SGD, lr=0.5), net=net)
        >>> def closure():
        ...     logits = net(x)
        ...     return nn.functional.cross_entropy(logits, y), logits
        >>> loss = optimizer.step(closure)
        >>> optimizer.distance  # no step before this one
        tensor(0.)
        >>> loss = optimizer.step(closure)
        >>> bool(optimizer.distance > 0)
        True

    References:
        Sherborne et al., *TRAM: Bridging Trust Regions and Sharpness Aware Minimization*, ICLR 2024, arXiv:2310.03646.
        Differs from the paper: the Fisher form is damped by 1, since without it entries of a flat slope get
        perturbations without bound; voxels and tokens count as samples. Its published code divides the distance by
        batch size and number of classes and does not climb along the gradient; here both are as in the paper.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Callable[..., Optimizer],
        *,
        trust: Trust = "previous",
        rho: float = 1.0,
        sigma: float = 0.1,
        noise_at: nn.Module | None = None,
        max_distance: float | None = None,
        min_distance: float = 0.0,
        eta: float = 0.1,
        gamma: float = 0.1,
        form: Form = "softmax",
        seed: int = 0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        _check(trust, noise_at=noise_at, max_distance=max_distance, min_distance=min_distance, eta=eta, gamma=gamma)
        self.distance: Tensor | None = None
        self._bounds = min_distance, max_distance
        self._form = form
        self._draws = SharedDraws(self._devices)
        if trust in ("previous", "initial"):
            rule = self._rule_of_weights(EarlierWeights(follow=trust == "previous"))
        else:
            noise = InputNoise(engine.get("net"), sigma=sigma, at=noise_at, seed=seed)
            natural = along_natural_gradient(eta=eta, gamma=gamma)
            rule = (
                self._rule_of_noise(noise)
                if trust == "noise"
                else Rule(climb=natural, during_first=partial(self._shaken, noise))
            )
        super().__init__(params, base, rule=rule, group_defaults={"rho": rho}, **engine)

    # Rules hold methods and no lambdas, since a deep copy of a lambda still speaks of the original.
    def _rule_of_weights(self, earlier: EarlierWeights) -> Rule:
        return Rule(
            climb=partial(self._climb_as_far, partial(self._earlier, earlier)),
            remember=partial(self._keep, earlier),
            during_first=self._draws.recorded,
        )

    def _rule_of_noise(self, noise: InputNoise) -> Rule:
        return Rule(climb=partial(self._climb_as_far, noise.outputs), during_first=self._draws.recorded)

    def _earlier(self, earlier: EarlierWeights, slope: Slope) -> Sequence[Any]:
        return earlier.outputs(slope, self._backup)

    def _keep(self, earlier: EarlierWeights, _: Sequence[Tensor], memory: Memory) -> None:
        earlier.keep(self._trained(), memory)

    def _shaken(self, noise: InputNoise) -> AbstractContextManager[None]:
        return noise.added(self.numbers)

    def _devices(self) -> set[torch.device]:
        return {param.device for param in self._trained()}

    def _trained(self) -> list[Tensor]:
        """Every parameter that a step may change, climbed or not: all of them make the outputs."""
        return [param for group in self.param_groups for param in group["params"] if param.requires_grad]

    def _climb_as_far(
        self, reference: Callable[[Slope], Sequence[Any]], slope: Slope
    ) -> tuple[Sequence[Tensor], Tensor]:
        """The direction times the distance, and the direction's length; that carries whether both are finite."""
        now = [logits_of(outputs) for outputs in slope.outputs]  # refused before any other pass
        with self._draws.again():
            then = [logits_of(outputs) for outputs in reference(slope)]
        pairs = zip(then, now, strict=True)
        distance = torch.stack([divergence(*pair, form=self._form) for pair in pairs]).mean()
        if self.perturbation == "global":
            average_over_ranks(self.net, [distance])
        self.distance = distance = distance.clamp(*self._bounds)
        direction, length = along_scaled_gradient(eta=0.0, normalize_bias=True)(slope)
        distance = distance.to(length.device)
        return torch._foreach_mul(list(direction), distance), length + 0 * distance


def along_natural_gradient(*, eta: float, gamma: float) -> Climb:
    r"""The rule with direction :math:`\gamma (1 + \eta g^2)^{-1} g`, length that of :math:`(1 + \eta g^2)^{-1/2} g`."""

    def climb(slope: Slope) -> tuple[Sequence[Tensor], Tensor]:
        gradients = torch._foreach_div(list(slope.grads), slope.scale())  # a square does not cancel a scaler's factor
        damping = torch._foreach_mul(gradients, gradients)
        torch._foreach_mul_(damping, eta)
        torch._foreach_add_(damping, 1)
        direction = torch._foreach_div(gradients, damping)
        torch._foreach_sqrt_(damping)
        length = global_norm(torch._foreach_div(gradients, damping))
        torch._foreach_mul_(direction, gamma)
        return direction, length

    return climb


def _check(
    trust: str,
    *,
    noise_at: nn.Module | None,
    max_distance: float | None,
    min_distance: float,
    eta: float,
    gamma: float,
) -> None:
    if trust not in get_args(Trust):
        raise ValueError(f"trust must be one of {', '.join(get_args(Trust))}, got {trust!r}")
    if not 0 <= min_distance < math.inf or (max_distance is not None and not min_distance <= max_distance):
        raise ValueError(
            f"distances must be bounded by 0 <= min_distance <= max_distance, got {min_distance} and {max_distance}"
        )
    if trust == "fisher" and (min_distance, max_distance) != (0, None):
        raise ValueError('trust="fisher" measures no distance, so there is none to bound; gamma is its radius')
    if trust in ("previous", "initial") and noise_at is not None:
        raise ValueError(f'trust="{trust}" adds no noise; leave noise_at out, or take trust="noise"')
    if not (0 <= eta < math.inf and 0 < gamma < math.inf):
        raise ValueError(f"eta must not be negative and gamma must be positive, both finite, got {eta} and {gamma}")
