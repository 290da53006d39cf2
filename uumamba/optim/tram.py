"""Trust-region-aware minimisation."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from uumamba.optim.asam import follow_scaled_gradient
from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import EngineOptions
from uumamba.optim.passes import read_logits
from uumamba.optim.restore import SharedDraws
from uumamba.optim.rules import Climb, Memory, Rule, Slope
from uumamba.optim.tensors import average_over_ranks, global_norm
from uumamba.optim.trust_region import EarlierWeights, Form, InputNoise, divergence
from uumamba.runtime.errors import require

Trust = Literal["previous", "initial", "noise", "fisher"]


class TRAM(SharpnessAware):
    r"""ASAM whose radius is the distance that the network's outputs moved.

    .. math:: \epsilon = \rho\, d \frac{T_w^2\, g}{\lVert T_w g \rVert_2}, \qquad T_w = |w|

    for every perturbed parameter, so :math:`\lVert T_w^{-1} \epsilon \rVert_2 = \rho d`. The distance d is a mean
    :func:`divergence <uumamba.optim.trust_region.divergence>` of the batch's outputs under the weights w, by ``trust``:

    - ``"previous"``: from the outputs under the weights of the step before, :math:`\mathrm{KL}(p_{w_{t-1}} \Vert p_w)`;
    - ``"initial"``: from the outputs under the weights before the first step, for fine-tuning;
    - ``"noise"``: from the outputs for a noisy input, :math:`\mathrm{KL}(p(x + z) \Vert p(x))`, z from
      :math:`N(0, \sigma^2)`.

    These take three forward and two backward passes, and the closure must return logits beside the loss (per sample,
    per voxel or per token). The first two keep one more copy of the weights, all trained ones, which is saved with the
    optimizer. The first step has no earlier weights, so d is 0 (or ``min_distance``): a plain step in two
    passes.

    - ``"fisher"`` takes two of each, needs no logits, and runs its first pass at the noisy input. With g the gradient
      found there, and :math:`F = g^2` an estimate of the Fisher information's diagonal,

    .. math:: \epsilon = \rho\, \gamma \frac{(1 + \eta F)^{-1} g}{\sqrt{g^\top (1 + \eta F)^{-1} g}}

    The step then returns the loss, and running statistics count the batch, at the noisy input.

    Edge cases. A distance that is not finite skips the step, as a gradient does. Accumulated micro-batches have a
    distance each, from the same earlier weights; ``accumulation="full"`` and ``perturbation="global"`` take the mean
    over closures and ranks. The pass that only the distance needs repeats the random numbers that torch drew in the
    first pass, so both drop out the same units, and training draws the same numbers as without it. Closures that draw
    from other generators, or run backward themselves, do not fit these forms. Tokens of padding count like
    any other.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        trust: reference of the distance.
        rho: factor of the distance, for groups that set none; 1 is the paper's.
        sigma: standard deviation of the noise, in the input's units.
        noise_at: a submodule whose output gets the noise, such as an embedding; None: the first floating-point input
            of ``net``.
        max_distance: upper bound of the distance; None: no bound.
        min_distance: lower bound of the distance.
        eta: weight of the Fisher information.
        gamma: the distance of ``"fisher"``.
        form: map of logits to probabilities, ``"softmax"`` over classes or ``"sigmoid"`` of each channel.
        seed: of the noise.
        engine: options of every member, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Attributes:
        distance: distance of the last climb, a scalar tensor; None before it and for ``"fisher"``.

    Raises:
        UsageError: an option is out of range, or not one of this ``trust``.
        UsageError: from ``step``: the closure returned no logits, or called nothing that gets the noise.

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
        bounds = min_distance, math.inf if max_distance is None else max_distance
        require(trust in get_args(Trust), "trust", got=trust, expected=", ".join(get_args(Trust)))
        require(0 <= min_distance < math.inf, "min_distance", got=min_distance, expected="finite and at least 0")
        require(
            min_distance <= bounds[1], "max_distance", got=max_distance, expected=f"at least {min_distance} or None"
        )
        require(
            trust != "fisher" or bounds == (0, math.inf),
            "max_distance" if max_distance is not None else "min_distance",
            got=min_distance if max_distance is None else max_distance,
            expected="no bound with trust fisher",
            fix="set gamma",
        )
        require(
            trust in ("noise", "fisher") or noise_at is None,
            "noise_at",
            got=type(noise_at).__name__,
            expected=f"None with trust {trust}",
        )
        require(0 <= eta < math.inf, "eta", got=eta, expected="finite and at least 0")
        require(0 < gamma < math.inf, "gamma", got=gamma, expected="finite and positive")
        self.distance: Tensor | None = None
        self._bounds = min_distance, max_distance
        self._form = form
        self._draws = SharedDraws(self._devices)
        # Rules hold methods and no lambdas: a deep copy of a lambda would refer to the original.
        if trust in ("previous", "initial"):
            earlier = EarlierWeights(follow=trust == "previous")
            climb: Climb = partial(self._climb_as_far, partial(self._run_earlier, earlier))
            rule = Rule(climb=climb, remember=partial(self._keep, earlier), during_first=self._draws.recorded)
        else:
            noise = InputNoise(engine.get("net"), sigma=sigma, at=noise_at, seed=seed)
            rule = Rule(climb=partial(self._climb_as_far, noise.run), during_first=self._draws.recorded)
            if trust == "fisher":
                climb = follow_natural_gradient(eta=eta, gamma=gamma)
                rule = Rule(climb=climb, during_first=partial(self._add_noise, noise))
        super().__init__(params, base, rule=rule, group_defaults={"rho": rho}, **engine)

    def _run_earlier(self, earlier: EarlierWeights, slope: Slope) -> Sequence[Any]:
        return earlier.run(slope, self._backup)

    def _keep(self, earlier: EarlierWeights, _: Sequence[Tensor], memory: Memory) -> None:
        earlier.keep(self._trained(), memory)

    def _add_noise(self, noise: InputNoise) -> AbstractContextManager[None]:
        return noise.added(self.numbers)

    def _devices(self) -> set[torch.device]:
        return {param.device for param in self._trained()}

    def _trained(self) -> list[Tensor]:
        """Return every trained parameter, perturbed or not: all make the outputs."""
        return [param for group in self.param_groups for param in group["params"] if param.requires_grad]

    def _climb_as_far(
        self, reference: Callable[[Slope], Sequence[Any]], slope: Slope
    ) -> tuple[Sequence[Tensor], Tensor]:
        """Climb along ASAM's direction times the distance.

        The length is not finite where the distance is not.
        """
        now = [read_logits(outputs) for outputs in slope.outputs]  # refused before any other pass
        with self._draws.repeated():
            then = [read_logits(outputs) for outputs in reference(slope)]
        distances = [divergence(*pair, form=self._form) for pair in zip(then, now, strict=True)]
        distance = torch.stack(distances).mean()
        if self.perturbation == "global":
            average_over_ranks(self.net, [distance])
        self.distance = distance = distance.clamp(*self._bounds)
        direction, length = follow_scaled_gradient(eta=0.0, normalize_bias=True)(slope)
        distance = distance.to(length.device)
        return torch._foreach_mul(list(direction), distance), length + 0 * distance


def follow_natural_gradient(*, eta: float, gamma: float) -> Climb:
    r"""Make the climb along the natural gradient.

    Direction :math:`\gamma (1 + \eta g^2)^{-1} g`, length that of :math:`(1 + \eta g^2)^{-1/2} g`.
    """

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
