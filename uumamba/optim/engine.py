"""The engine of the family: climb, descend with the gradient found there, return, update; every detail once."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from uumamba.optim.averaging import average_over_ranks, average_what_the_wrapper_does_not
from uumamba.optim.backup import WeightBackup, forget_casts
from uumamba.optim.foreach import add_gradients, global_norm, own_gradients, put_gradients, take_gradients
from uumamba.optim.groups import check_groups, groups_of, make_base
from uumamba.optim.options import check_options
from uumamba.optim.passes import Ascent, AtWeights, Closure, Passes
from uumamba.optim.rules import BeforeMix, Rule, Slope, mix_gradients
from uumamba.runtime.errors import UsageError

NEVER = Rule()


class SharpnessAware(Optimizer):
    r"""An optimizer around another one, which descends with the gradient of a perturbed point.

    A member of the family is a :class:`Rule`: where to climb, how far, when, and what to descend with; all else is
    here. One step, with g the gradient of the loss to climb at the weights w, d a direction and l its length:

    .. math:: \epsilon = \mathrm{reach}(\rho, l)\, d(g), \qquad
              w \leftarrow \mathrm{base}\big(w,\ \mathrm{mix}(g, \nabla L(w + \epsilon)) + \nabla A(w)\big)

    where A is ``at_weights``. A rule that knows its direction before any pass has that at the climbed weights alone.
    The base and this optimizer share ``param_groups``, so a scheduler may hold either.
    Groups take ``perturb`` (False: not climbed, not counted in any length of a climb) and ``rho`` of their own.

    Edge cases. No climb, or rho 0 in every group: one pass, and the base's own step bit for bit. A gradient of 0:
    no perturbation. A gradient that is not finite in either pass: weights and the base's state stay as they are,
    ``skipped_steps`` counts one more, a scaler backs off, and data-parallel ranks agree. A closure that raises: the
    weights are back before the error leaves the step. Parameters without a gradient are left alone.

    Args:
        params: parameters, named parameters or groups, as any torch optimizer takes them.
        base: any callable from parameters to an optimizer, such as ``partial(torch.optim.SGD, lr=0.1)``.
        rule: what this member does differently; the default never climbs.
        group_defaults: what groups get that do not say it themselves, such as ``{"rho": 0.05}``.
        net: see :class:`EngineOptions`, as are ``scaler``, ``max_grad_norm``, ``accumulation`` and ``perturbation``.

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
        rule: Rule = NEVER,
        group_defaults: dict[str, Any] | None = None,
        net: nn.Module | None = None,
        scaler: torch.amp.GradScaler | None = None,
        max_grad_norm: float | None = None,
        accumulation: Literal["micro", "full"] = "micro",
        perturbation: Literal["rank", "global"] = "rank",
    ) -> None:
        check_options(max_grad_norm, accumulation, perturbation)
        self.base = make_base(base, groups_of(params))
        super().__init__(self.base.param_groups, self.base.defaults | {"perturb": True} | (group_defaults or {}))
        self.param_groups = self.base.param_groups
        check_groups(self.param_groups)
        self.net, self.scaler = net, scaler if scaler is not None and scaler.is_enabled() else None
        self.max_grad_norm = max_grad_norm
        self.accumulation = accumulation
        self.perturbation = perturbation
        self.skipped_steps = 0
        self.numbers: dict[str, float] = {}
        self._rule = rule
        self._backup = WeightBackup()
        self._before_mix: OrderedDict[int, BeforeMix] = OrderedDict()

    def step(  # type: ignore[override]  # torch's closure runs backward; the seam of this family is wider
        self,
        closure: Closure | Sequence[Closure],
        ascent: Ascent | None = None,
        at_weights: AtWeights | None = None,
    ) -> Tensor:
        """One whole training step.

        Args:
            closure: runs the forward pass and returns the loss, or ``(loss, outputs)``. One that also zeroed gradients
                and ran backward, as torch's own optimizers want it, is accepted where no scaler is in use. A list is
                one step accumulated over micro-batches.
            ascent: the scalar to climb, from the closure's outputs; the loss itself unless given. Without effect where
                nothing climbs.
            at_weights: returns a scalar whose gradient at the unclimbed weights is added, once a step. Of a list, each
                runs backward before the next one is called, and their gradients are added up, not averaged; None
                adds nothing, alone or in a list.

        Returns:
            The loss at the unclimbed weights, detached; its mean over the closures of a list.

        Raises:
            UsageError: a closure returned something else, its loss or what is added reaches no parameter, or there is
                none; or this member descends with the first gradient, or has none, and so cannot climb another loss.
        """
        closures = [closure] if callable(closure) else list(closure)
        if not closures:
            raise UsageError("A step needs at least one closure, got an empty list.")
        params = [param for group in self.param_groups for param in group["params"] if param.requires_grad]
        self.zero_grad()
        gradients: list[Tensor | None] = [None] * len(params)
        scalars = (
            [at_weights] if callable(at_weights) else [scalar for scalar in at_weights or () if scalar is not None]
        )
        if scalars:
            gradients = self._added(scalars, params)
        if not self._climbs():
            losses, _, gradients = self._descend(closures, params, gradients)
        elif ascent is not None and not self._rule.takes_ascent:
            why = (
                "climbs along a direction of earlier steps, so there is no other loss to climb"
                if self._rule.lead is not None
                else "descends with the first pass's gradient too, which would be the other loss's"
            )
            raise UsageError(
                f"{type(self).__name__} {why}; leave ascent out, or take an optimizer such as SAM or ASAM."
            )
        elif self._rule.lead is None:
            losses, gradients = self._climb_and_descend(closures, params, gradients, ascent)
        else:
            losses, gradients = self._descend_ahead(closures, params, gradients)
        put_gradients(params, gradients)
        self._update([param for param in params if param.grad is not None])
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _climbs(self) -> bool:
        if self._rule.climb is None and self._rule.lead is None:
            return False
        return any(group["perturb"] and group["rho"] != 0 for group in self.param_groups)

    def _accumulate(self, *arguments: Any, **how: Any) -> tuple[list[Tensor], list[Any], list[Tensor | None]]:
        return Passes(self.net, self.scaler).accumulate(*arguments, **how)

    def _added(self, scalars: Sequence[Callable[[], Tensor]], params: Sequence[Tensor]) -> list[Tensor | None]:
        """The gradients of what is added, at the weights that stand now."""
        _, _, gradients = self._accumulate(scalars, params, [None] * len(params))
        if all(gradient is None for gradient in gradients):
            raise UsageError(
                "The scalar of at_weights reaches none of the optimizer's parameters, so it would change nothing; make "
                "what returns it, such as UDIM, around the very network that the optimizer trains, not a copy."
            )
        return gradients

    def _descend(
        self, closures: Sequence[Closure], params: Sequence[Tensor], gradients: list[Tensor | None]
    ) -> tuple[list[Tensor], list[Any], list[Tensor | None]]:
        """Losses, outputs, and the given gradients plus the mean of those at the weights that stand now."""
        share = 1 / len(closures)
        return self._accumulate(closures, params, gradients, share=share, synchronise=True, count_statistics=True)

    def _descend_ahead(
        self, closures: Sequence[Closure], params: Sequence[Tensor], gradients: list[Tensor | None]
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """The only losses, and the given gradients plus those at weights climbed to before any pass."""
        assert self._rule.lead is not None  # the caller asks only when there is one
        climbed, groups = self._climbed()
        with torch.no_grad():
            directions = self._rule.lead(climbed, self.state, self.base.state)
        known = [index for index, direction in enumerate(directions) if direction is not None]
        moved, along = [climbed[index] for index in known], [d for d in directions if d is not None]
        with self._backup.restored_after(moved):
            self._move(moved, along, [groups[index] for index in known], global_norm(along))
            losses, _, gradients = self._descend(closures, params, gradients)
        return losses, gradients

    def _climb_and_descend(
        self,
        closures: Sequence[Closure],
        params: Sequence[Tensor],
        gradients: list[Tensor | None],
        ascent: Ascent | None,
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """First losses, and the given gradients plus those of the climbed points."""
        rule = self._rule
        blocks = [closures] if self.accumulation == "full" else [[closure] for closure in closures]
        losses: list[Tensor] = []
        for index, block in enumerate(blocks):
            found, outputs, first = self._look(block, params, ascent)
            losses += found
            slope = self._slope(block, params, first, outputs)
            if not self._is_due(slope):
                put_gradients(params, first)
                put_gradients(slope.params, self._instead(slope))
                gradients = self._take_sum(params, gradients, share=len(block) / len(closures))
                continue
            with self._backup.restored_after(slope.params):
                # A first pass that is not finite makes the second one so. Every rank then sees it after averaging, and
                # the scaler when it unscales, without a word of their own.
                sound = 1.0 if self._climb(slope) else math.nan
                if rule.mix is None:
                    del slope, first, outputs  # the second pass needs their memory
                    share, last = sound / len(closures), index == len(blocks) - 1
                    gradients = self._accumulate(block, params, gradients, share=share, synchronise=last)[2]
                else:
                    share = sound / len(block)
                    second = self._accumulate(block, params, [None] * len(params), share=share, synchronise=rule.shared)
                    put_gradients(params, second[2])
                    mix_gradients(rule.mix, slope, self._before_mix.values())
                    gradients = self._take_sum(params, gradients, share=len(block) / len(closures))
        return losses, gradients

    def _look(
        self, block: Sequence[Closure], params: Sequence[Tensor], ascent: Ascent | None
    ) -> tuple[list[Tensor], list[Any], list[Tensor | None]]:
        """Losses, outputs and mean gradients at the unclimbed weights, averaged over ranks where the climb is."""
        together = self._rule.shared or self.perturbation == "global"
        with self._rule.during_first():
            found = self._accumulate(
                block,
                params,
                [None] * len(params),
                share=1 / len(block),
                synchronise=together,
                count_statistics=True,
                ascent=ascent,
            )
        return (*found[:2], own_gradients(self.net, found[2]) if together else found[2])

    @torch.no_grad()
    def _is_due(self, slope: Slope) -> bool:
        return self._rule.due is None or self._rule.due(slope)

    @torch.no_grad()
    def _instead(self, slope: Slope) -> Sequence[Tensor]:
        return slope.grads if self._rule.instead is None else self._rule.instead(slope)

    @torch.no_grad()
    def _climb(self, slope: Slope) -> bool:
        assert self._rule.climb is not None  # the caller asks only when there is one
        directions, length = self._rule.climb(slope)
        return self._move(slope.params, directions, slope.groups, length)

    def _climbed(self) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """The parameters to perturb, and each one's group."""
        pairs = [(param, group) for group in self.param_groups if group["perturb"] for param in group["params"]]
        learning = [pair for pair in pairs if pair[0].requires_grad]
        return [param for param, _ in learning], [group for _, group in learning]

    def _slope(
        self, block: Sequence[Closure], params: Sequence[Tensor], first: Sequence[Tensor | None], outputs: list[Any]
    ) -> Slope:
        owners = [group for group in self.param_groups for param in group["params"] if param.requires_grad]
        climbed = [
            (param, grad, group)
            for param, grad, group in zip(params, first, owners, strict=True)
            if grad is not None and group["perturb"]
        ]
        return Slope(
            [param for param, _, _ in climbed],
            [grad for _, grad, _ in climbed],
            [group for _, _, group in climbed],
            outputs,
            self.state,
            self.numbers,
            scale=self._scale,
            replay=partial(Passes(self.net, self.scaler).replay, block),
        )

    def _scale(self) -> float:
        return 1.0 if self.scaler is None else float(self.scaler.get_scale())

    @torch.no_grad()
    def _move(
        self,
        params: Sequence[Tensor],
        directions: Sequence[Tensor],
        groups: Sequence[Mapping[str, Any]],
        length: Tensor,
    ) -> bool:
        """Climb, unless the slope is not finite; 0 * inf is NaN, so a factor of 0 would not do.

        Reading the length is the one wait for the device before the update. It buys a climb in a single kernel that
        never stores the perturbation, and leaves the gradient whole for a mix.
        """
        steepness = length.item()
        if not math.isfinite(steepness):
            return False
        for group in self.param_groups:
            if not group["perturb"] or group["rho"] == 0:
                continue
            mine = [index for index, other in enumerate(groups) if other is group]
            if mine:
                factor = self._rule.reach(group, steepness)
                moved, along = [params[index] for index in mine], [directions[index] for index in mine]
                torch._foreach_add_(moved, along, alpha=factor)
        forget_casts()
        return True

    def _take_sum(
        self, params: Sequence[Tensor], gradients: list[Tensor | None], *, share: float
    ) -> list[Tensor | None]:
        """The given gradients plus ``share`` times those that the parameters hold, which they no longer do."""
        found = [param.grad for param in params if param.grad is not None]
        with torch.no_grad():
            if found and share != 1:
                torch._foreach_mul_(found, share)
            add_gradients(params, gradients)
        return take_gradients(params)

    def _update(self, params: Sequence[Tensor]) -> None:
        """Clip and hand the gradient to the base, or skip the step where it is not finite."""
        if not params:
            raise UsageError("The loss reaches none of the optimizer's parameters; check what was passed as params.")
        gradients = [param.grad for param in params if param.grad is not None]
        if self._rule.mix is not None or self._rule.due is not None:
            average_over_ranks(self.net, gradients)
        else:
            average_what_the_wrapper_does_not(self.net, params)
        if self.scaler is not None:
            self.scaler.unscale_(self.base)
        norm = global_norm(gradients, join_small=False)  # as torch clips
        if math.isfinite(norm.item()):
            if self.max_grad_norm is not None:
                clip_grads_with_norm_(params, self.max_grad_norm, norm)
            if self._rule.remember is not None:
                self._rule.remember([param for param in self._climbed()[0] if param.grad is not None], self.state)
            self.base.step() if self.scaler is None else self.scaler.step(self.base)
            forget_casts()
        else:
            self.skipped_steps += 1
        if self.scaler is not None:
            self.scaler.update()

    def register_before_mix(self, hook: BeforeMix) -> RemovableHandle:
        """Let ``hook(slope, second)`` see the two gradients that a step descends with, before they are mixed.

        It is called once a climb, which is once an accumulated micro-batch, and may change ``slope.grads`` and
        ``second`` in place; what it keeps in ``slope.memory`` and ``slope.numbers`` is saved with the optimizer.

        Raises:
            UsageError: this member descends with one of them alone.
        """
        if not self._rule.descends_with_first:
            raise UsageError(
                f"{type(self).__name__} does not descend with both of its gradients, so there is nothing to see before "
                "they are mixed; take SAGM, which does."
            )
        handle = RemovableHandle(self._before_mix)
        self._before_mix[handle.id] = hook
        return handle

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to this optimizer and its base, which share it."""
        if self.param_groups is not self.base.param_groups:  # torch's own constructor, going through the base's groups
            super().add_param_group(param_group)
            return
        check_groups([self.defaults | param_group])
        self.base.add_param_group(param_group)
        for name, value in self.defaults.items():
            param_group.setdefault(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy has: all but a scheduler's hand on ``step``, which would step the original.

        It makes buffers of its own, keeps hooks (copies of their objects, where they are methods), and trains on as the
        original would.
        """
        return {name: value for name, value in vars(self).items() if name != "step"} | {"_backup": WeightBackup()}

    def state_dict(self) -> dict[str, Any]:
        """Torch's layout for the family's memory, plus ``base``, ``scaler``, ``skipped_steps`` and ``numbers``."""
        return super().state_dict() | {
            "base": self.base.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "skipped_steps": self.skipped_steps,
            "numbers": dict(self.numbers),
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
        self.numbers = dict(state_dict.get("numbers", {}))  # not in those written before rules had any
