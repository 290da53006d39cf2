"""The engine of the family: climb, descend with the gradient found there, return, update; every detail once."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer

from uumamba.errors import UsageError
from uumamba.optim.averaging import average_over_ranks
from uumamba.optim.backup import WeightBackup, forget_casts
from uumamba.optim.foreach import add_gradients, global_norm, put_gradients, take_gradients
from uumamba.optim.groups import check_groups, groups_of, make_base
from uumamba.optim.options import check_options
from uumamba.optim.passes import Ascent, Closure, Passes
from uumamba.optim.rules import Climb, Mix, Reach, Slope, mix_gradients, to_radius


class SharpnessAware(Optimizer):
    r"""An optimizer around another one, which descends with the gradient of a perturbed point.

    A member of the family is a ``climb`` (direction and length), perhaps another ``reach``, perhaps a ``mix``; all
    else is here. One step, with g the gradient of the loss to climb at the weights w:

    .. math:: \epsilon = \mathrm{reach}(\rho, \lVert d \rVert)\, d(g), \qquad
              w \leftarrow \mathrm{base}\big(w,\ \nabla L(w + \epsilon) + \nabla A(w)\big)

    where A is ``at_weights``. The base and this optimizer share ``param_groups``, so a scheduler may hold either.
    Groups take ``perturb`` (False: not climbed, not counted in any length of a climb) and ``rho`` of their own.

    Edge cases. No climb, or rho 0 in every group: one pass, and the base's own step bit for bit. A gradient of 0:
    no perturbation. A gradient that is not finite in either pass: weights and the base's state stay as they are,
    ``skipped_steps`` counts one more, a scaler backs off, and data-parallel ranks agree. A closure that raises: the
    weights are back before the error leaves the step. Parameters without a gradient are left alone.

    Args:
        params: parameters, named parameters or groups, as any torch optimizer takes them.
        base: any callable from parameters to an optimizer, such as ``partial(torch.optim.SGD, lr=0.1)``.
        climb: the rule for the direction; None never climbs.
        reach: the rule for the distance.
        mix: the rule that joins both gradients; None descends with the second.
        group_defaults: what groups get that do not say it themselves, such as ``{"rho": 0.05}``.
        net: see :class:`EngineOptions`, as are ``scaler``, ``max_grad_norm`` and ``accumulation``.

    Raises:
        TypeError: ``base`` is not a callable that returns an optimizer.
        ValueError: an option or a group's rho is out of range.

    Example:
        >>> from functools import partial
        >>> weight = nn.Parameter(torch.tensor([2.0]))
        >>> optimizer = SharpnessAware([weight], partial(torch.optim.SGD, lr=0.5))
        >>> optimizer.step(lambda: (weight**2).sum())
        tensor(4.)
        >>> weight.data
        tensor([0.])
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: Callable[..., Optimizer],
        *,
        climb: Climb | None = None,
        reach: Reach = to_radius,
        mix: Mix | None = None,
        group_defaults: dict[str, Any] | None = None,
        net: nn.Module | None = None,
        scaler: torch.amp.GradScaler | None = None,
        max_grad_norm: float | None = None,
        accumulation: Literal["micro", "full"] = "micro",
    ) -> None:
        check_options(max_grad_norm, accumulation)
        self.base = make_base(base, groups_of(params))
        super().__init__(self.base.param_groups, self.base.defaults | {"perturb": True} | (group_defaults or {}))
        self.param_groups = self.base.param_groups
        check_groups(self.param_groups)
        self.net, self.scaler = net, scaler if scaler is not None and scaler.is_enabled() else None
        self.max_grad_norm = max_grad_norm
        self.accumulation = accumulation
        self.skipped_steps = 0
        self._climb, self._reach, self._mix = climb, reach, mix
        self._backup = WeightBackup()

    def step(  # type: ignore[override]  # torch's closure runs backward; the seam of this family is wider
        self,
        closure: Closure | Sequence[Closure],
        ascent: Ascent | None = None,
        at_weights: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """One whole training step.

        Args:
            closure: runs the forward pass and returns the loss, or ``(loss, outputs)``. One that also zeroed gradients
                and ran backward, as torch's own optimizers want it, is accepted where no scaler is in use. A list is
                one step accumulated over micro-batches.
            ascent: the scalar to climb, from the closure's outputs; the loss itself unless given. Without effect where
                nothing climbs.
            at_weights: returns a scalar whose gradient at the unclimbed weights is added, once a step.

        Returns:
            The loss at the unclimbed weights, detached; its mean over the closures of a list.

        Raises:
            UsageError: a closure returned something else, its loss reaches no parameter, or there is none.
        """
        closures = [closure] if callable(closure) else list(closure)
        if not closures:
            raise UsageError("A step needs at least one closure, got an empty list.")
        params = [param for group in self.param_groups for param in group["params"] if param.requires_grad]
        self.zero_grad()
        gradients: list[Tensor | None] = [None] * len(params)
        if at_weights is not None:
            _, _, gradients = self._accumulate([at_weights], params, gradients)
        if self._climbs():
            losses, gradients = self._climb_and_descend(closures, params, gradients, ascent)
        else:
            losses, _, gradients = self._accumulate(
                closures, params, gradients, share=1 / len(closures), synchronise=True, count_statistics=True
            )
        put_gradients(params, gradients)
        self._update([param for param in params if param.grad is not None])
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _climbs(self) -> bool:
        return self._climb is not None and any(group["perturb"] and group["rho"] != 0 for group in self.param_groups)

    def _accumulate(
        self,
        closures: Sequence[Closure],
        params: Sequence[Tensor],
        gradients: list[Tensor | None],
        *,
        share: float = 1.0,
        synchronise: bool = False,
        **how: Any,
    ) -> tuple[list[Tensor], list[Any], list[Tensor | None]]:
        """Losses, outputs, and the given gradients plus ``share`` times those of the closures."""
        passes, losses, outputs = Passes(self.net, self.scaler), [], []
        for index, closure in enumerate(closures):
            last = index == len(closures) - 1
            onto = gradients if any(gradient is not None for gradient in gradients) else None
            loss, output = passes.run(closure, params, onto=onto, share=share, synchronise=synchronise and last, **how)
            losses.append(loss)
            outputs.append(output)
            gradients = take_gradients(params)
        return losses, outputs, gradients

    def _climb_and_descend(
        self,
        closures: Sequence[Closure],
        params: Sequence[Tensor],
        gradients: list[Tensor | None],
        ascent: Ascent | None,
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """First losses, and the given gradients plus those of the climbed points."""
        blocks = [closures] if self.accumulation == "full" else [[closure] for closure in closures]
        losses: list[Tensor] = []
        for index, block in enumerate(blocks):
            found, outputs, first = self._accumulate(
                block, params, [None] * len(params), share=1 / len(block), count_statistics=True, ascent=ascent
            )
            losses += found
            slope = self._slope(params, first, outputs)
            with self._backup.restored_after(slope.params):
                # A first pass that is not finite makes the second one so. Every rank then sees it after averaging, and
                # the scaler when it unscales, without a word of their own.
                sound = 1.0 if self._move(slope) else math.nan
                if self._mix is None:
                    del slope, first, outputs  # the second pass needs their memory
                    share, last = sound / len(closures), index == len(blocks) - 1
                    gradients = self._accumulate(block, params, gradients, share=share, synchronise=last)[2]
                else:
                    second = self._accumulate(block, params, [None] * len(params), share=sound / len(block))[2]
                    put_gradients(params, second)
                    mix_gradients(self._mix, slope)
                    gradients = self._take_sum(params, gradients, share=len(block) / len(closures))
        return losses, gradients

    def _slope(self, params: Sequence[Tensor], first: Sequence[Tensor | None], outputs: list[Any]) -> Slope:
        gradient_of = dict(zip(params, first, strict=True))
        climbed = [param for group in self.param_groups if group["perturb"] for param in group["params"]]
        pairs = [(param, grad) for param in climbed if (grad := gradient_of.get(param)) is not None]
        return Slope([param for param, _ in pairs], [grad for _, grad in pairs], outputs, self.state)

    @torch.no_grad()
    def _move(self, slope: Slope) -> bool:
        """Climb, unless the slope is not finite; 0 * inf is NaN, so a factor of 0 would not do.

        Reading the length is the one wait for the device before the update. It buys a climb in a single kernel that
        never stores the perturbation, and leaves the gradient whole for a mix.
        """
        assert self._climb is not None  # the caller asks only when there is one
        directions, length = self._climb(slope)
        steepness = length.item()
        if not math.isfinite(steepness):
            return False
        rho_of = {param: group["rho"] for group in self.param_groups for param in group["params"]}
        for rho in {rho_of[param]: None for param in slope.params}:
            if rho == 0:
                continue
            pairs = [pair for pair in zip(slope.params, directions, strict=True) if rho_of[pair[0]] == rho]
            moved, along = [param for param, _ in pairs], [direction for _, direction in pairs]
            torch._foreach_add_(moved, along, alpha=self._reach(rho, steepness))
        forget_casts()
        return True

    def _take_sum(
        self, params: Sequence[Tensor], gradients: list[Tensor | None], *, share: float
    ) -> list[Tensor | None]:
        """The given gradients plus ``share`` times those that the parameters hold, which they no longer do."""
        with torch.no_grad():
            torch._foreach_mul_([param.grad for param in params if param.grad is not None], share)
            add_gradients(params, gradients)
        return take_gradients(params)

    def _update(self, params: Sequence[Tensor]) -> None:
        """Clip and hand the gradient to the base, or skip the step where it is not finite."""
        if not params:
            raise UsageError("The loss reaches none of the optimizer's parameters; check what was passed as params.")
        gradients = [param.grad for param in params if param.grad is not None]
        if self._mix is not None:
            average_over_ranks(self.net, gradients)
        if self.scaler is not None:
            self.scaler.unscale_(self.base)
        norm = global_norm(gradients)
        if math.isfinite(norm.item()):
            if self.max_grad_norm is not None:
                clip_grads_with_norm_(params, self.max_grad_norm, norm)
            self.base.step() if self.scaler is None else self.scaler.step(self.base)
            forget_casts()
        else:
            self.skipped_steps += 1
        if self.scaler is not None:
            self.scaler.update()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to this optimizer and its base, which share it."""
        if self.param_groups is not self.base.param_groups:  # torch's own constructor, going through the base's groups
            super().add_param_group(param_group)
            return
        check_groups([self.defaults | param_group])
        self.base.add_param_group(param_group)
        for name, value in self.defaults.items():
            param_group.setdefault(name, value)

    def state_dict(self) -> dict[str, Any]:
        """Torch's layout for the family's own memory, plus ``base``, ``scaler`` and ``skipped_steps``."""
        return super().state_dict() | {
            "base": self.base.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "skipped_steps": self.skipped_steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where another optimizer of the same kind stopped: the base's state and the scaler's included.

        Raises:
            ValueError: the state is not one of this family's, or of other parameter groups.
        """
        missing = {"base", "scaler", "skipped_steps"} - state_dict.keys()
        if missing:
            raise ValueError(
                f"state_dict lacks {', '.join(sorted(missing))}, so it is not of {type(self).__name__}; "
                "a state of torch's own optimizer goes to .base.load_state_dict instead"
            )
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups
        if self.scaler is not None and state_dict["scaler"] is not None:
            self.scaler.load_state_dict(state_dict["scaler"])
        self.skipped_steps = state_dict["skipped_steps"]
