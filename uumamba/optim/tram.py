"""Trust-region-aware minimisation."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from uumamba.optim.asam import follow_scaled_gradient
from uumamba.optim.engine import SharpnessAware
from uumamba.optim.groups import BaseFactory, EngineOptions, Params
from uumamba.optim.output_divergence import Form, divergence, find_valid
from uumamba.optim.passes import read_logits, read_output_label
from uumamba.optim.restore import SharedDraws
from uumamba.optim.rules import FirstPass, Memory, Rule
from uumamba.optim.tensors import average_over_ranks, global_norm
from uumamba.optim.trust_region import InputNoise, run_earlier_weights, store_weights
from uumamba.runtime.errors import require
from uumamba.runtime.options import NonNegative, NonNegativeInt, Positive, check_options

Trust = Literal["previous", "initial", "noise", "fisher"]


class TRAM(SharpnessAware):
    r"""ASAM whose radius is the divergence of the network's outputs.

    .. math:: \epsilon = \rho\, d \frac{T_w^2\, g}{\lVert T_w g \rVert_2}, \qquad T_w = |w|

    for every perturbed parameter, so :math:`\lVert T_w^{-1} \epsilon \rVert_2 = \rho d`. The distance d is a mean
    :func:`divergence <uumamba.optim.output_divergence.divergence>` of the batch's outputs under the weights w, by
    ``trust``:

    - ``"previous"``: from the outputs under the weights of the step before, :math:`\mathrm{KL}(p_{w_{t-1}} \Vert p_w)`;
    - ``"initial"``: from the outputs under the weights before the first step, for fine-tuning;
    - ``"noise"``: from the outputs for a noisy input, :math:`\mathrm{KL}(p(x + z) \Vert p(x))`, z from
      :math:`N(0, \sigma^2)`.

    These forms need three forward and two backward passes, and the closure must return logits with the loss (per
    sample, per voxel or per token). The first two keep one more copy of all trained weights, which is saved with the
    optimizer. The first step has no earlier weights, so d is 0 (or ``min_distance``): a plain step in two passes.

    - ``"fisher"`` needs two forward and two backward passes and no logits, and runs its first pass at the noisy input.
      With g the gradient there, and :math:`F = g^2` an estimate of the Fisher information's diagonal,

    .. math:: \epsilon = \rho\, \gamma \frac{(1 + \eta F)^{-1} g}{\sqrt{g^\top (1 + \eta F)^{-1} g}}

    The step then returns the loss, and running statistics count the batch, at the noisy input.

    Edge cases. A distance that is not finite skips the step, like a gradient that is not finite. Accumulated
    micro-batches have a distance each, from the same earlier weights; ``accumulation="full"`` and
    ``perturbation="global"`` take the mean over closures and ranks. The pass for the distance repeats the random
    numbers that torch drew in the first pass, so dropout omits the same units in both passes, and training draws the
    same numbers as without that pass. Closures that draw from other generators, or run backward themselves, are not
    supported by these forms. Padding tokens count like any other token.

    Args:
        params: parameters, named parameters or groups; a group may set ``rho`` or ``perturb=False``.
        base: any callable from parameters to an optimizer.
        trust: reference of the distance.
        rho: factor of the distance; the paper has 1.
        sigma: standard deviation of the noise, in the input's units.
        noise_at: submodule whose output gets the noise, such as an embedding; None: the first floating-point input
            of ``net``.
        max_distance: upper bound of the distance; None: no bound.
        min_distance: lower bound of the distance.
        eta: weight of the Fisher information.
        gamma: the distance of ``"fisher"``.
        form: map of logits to probabilities, ``"softmax"`` over classes or ``"sigmoid"`` of each channel.
        ignore_label: label of samples or voxels to leave out of the distance; the closure then returns
            ``(loss, (logits, label))``.
        seed: seed of the noise.
        engine: options of every optimizer of uumamba.optim, such as ``net`` and ``scaler``; see :class:`EngineOptions`.

    Attributes:
        distance: distance of the last perturbation, a scalar tensor; None before the first one and for ``"fisher"``.

    Raises:
        UsageError: an option is out of range, or has no effect with this ``trust``.
        UsageError: from ``step``: the closure returned no logits, or called no module with noise.

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
        Differs from the paper: the Fisher form is damped by 1, since without damping entries with a small
        gradient get unbounded perturbations; voxels and tokens count as samples. The published code divides the
        distance by batch size and number of classes and does not perturb along the gradient; here both are as in the
        paper.
    """

    @check_options
    def __init__(
        self,
        params: Params,
        base: BaseFactory,
        *,
        trust: Trust = "previous",
        rho: NonNegative = 1.0,
        sigma: Positive = 0.1,
        noise_at: nn.Module | None = None,
        max_distance: Positive | None = None,
        min_distance: NonNegative = 0.0,
        eta: NonNegative = 0.1,
        gamma: Positive = 0.1,
        form: Form = "softmax",
        ignore_label: int | None = None,
        seed: NonNegativeInt = 0,
        **engine: Unpack[EngineOptions],
    ) -> None:
        bounds = min_distance, math.inf if max_distance is None else max_distance
        require(
            min_distance <= bounds[1],
            "max_distance",
            got=max_distance,
            expected=f"None or a number of at least {min_distance}",
        )
        require(
            trust != "fisher" or bounds == (0, math.inf),
            "max_distance" if max_distance is not None else "min_distance",
            got=min_distance if max_distance is None else max_distance,
            expected="no bound with trust fisher",
            fix="set gamma instead",
        )
        require(
            trust in ("noise", "fisher") or noise_at is None,
            "noise_at",
            got=type(noise_at).__name__,
            expected=f"None with trust {trust}",
        )
        self.distance: Tensor | None = None
        self._bounds = min_distance, max_distance
        self._form, self._ignored = form, ignore_label
        self._draws = SharedDraws(self._list_devices)
        # Rules hold methods and partials: a deep copy of a lambda would refer to the original, and pickle has none.
        if trust in ("previous", "initial"):
            rule = Rule(
                direction=partial(self._scale_by_distance, self._run_earlier),
                remember=partial(self._store_weights, replace=trust == "previous"),
                first_pass_context=self._draws.record,
            )
        else:
            noise = InputNoise(engine.get("net"), sigma=sigma, at=noise_at, seed=seed)
            rule = Rule(direction=partial(self._scale_by_distance, noise.run), first_pass_context=self._draws.record)
            if trust == "fisher":
                rule = Rule(
                    direction=partial(follow_natural_gradient, eta=eta, gamma=gamma),
                    first_pass_context=partial(self._add_noise, noise),
                )
        super().__init__(params, base, rule=rule, group_defaults={"rho": rho}, **engine)

    @classmethod
    def needs_logits(cls, options: Mapping[str, Any]) -> bool:
        """Return whether the radius is a distance of outputs."""
        return bool(options["trust"] != "fisher")

    def _run_earlier(self, first: FirstPass) -> Sequence[Any]:
        return run_earlier_weights(first, self._backup)

    def _store_weights(self, _: Sequence[Tensor], memory: Memory, *, replace: bool) -> None:
        store_weights(self._list_trained(), memory, replace=replace)

    def _add_noise(self, noise: InputNoise) -> AbstractContextManager[None]:
        return noise.add(self.numbers)

    def _list_devices(self) -> set[torch.device]:
        return {param.device for param in self._list_trained()}

    def _list_trained(self) -> list[Tensor]:
        """List every trained parameter, perturbed or not: outputs depend on all."""
        return [param for group in self.param_groups for param in group["params"] if param.requires_grad]

    def _scale_by_distance(
        self, reference: Callable[[FirstPass], Sequence[Any]], first: FirstPass
    ) -> tuple[Sequence[Tensor], Tensor]:
        """Return ASAM's direction times the distance, and its length.

        The length is not finite if the distance is not finite.
        """
        now = [read_logits(outputs) for outputs in first.outputs]  # raises before any other pass
        ignored = self._ignored
        masks = [
            None if ignored is None else find_valid(read_output_label(outputs), logits, ignored)
            for outputs, logits in zip(first.outputs, now, strict=True)
        ]
        with self._draws.repeat():
            then = [read_logits(outputs) for outputs in reference(first)]
        distances = [
            divergence(before, after, form=self._form, valid=mask)
            for before, after, mask in zip(then, now, masks, strict=True)
        ]
        distance = torch.stack(distances).mean()
        if self.perturbation == "global":
            average_over_ranks(self.net, [distance])
        self.distance = distance = distance.clamp(*self._bounds)
        direction, length = follow_scaled_gradient(first, eta=0.0, normalize_bias=True)
        distance = distance.to(length.device)
        return torch._foreach_mul(list(direction), distance), length + 0 * distance


def follow_natural_gradient(first: FirstPass, *, eta: float, gamma: float) -> tuple[Sequence[Tensor], Tensor]:
    r"""Return the direction of the natural gradient and its length.

    The direction is :math:`\gamma (1 + \eta g^2)^{-1} g`, its length that of :math:`(1 + \eta g^2)^{-1/2} g`.
    """
    gradients = torch._foreach_div(list(first.grads), first.scale())  # a square does not cancel a scaler's factor
    damping = torch._foreach_mul(gradients, gradients)
    torch._foreach_mul_(damping, eta)
    torch._foreach_add_(damping, 1)
    direction = torch._foreach_div(gradients, damping)
    torch._foreach_sqrt_(damping)
    length = global_norm(torch._foreach_div(gradients, damping))
    torch._foreach_mul_(direction, gamma)
    return direction, length
