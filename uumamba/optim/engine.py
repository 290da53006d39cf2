"""Engine of the family: climb, descend with the gradient found there, update."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from uumamba.optim.groups import check_groups, check_options, make_base, make_groups
from uumamba.optim.passes import Ascent, AtWeights, Closure, Found, Passes
from uumamba.optim.restore import WeightBackup
from uumamba.optim.rules import BeforeMix, Rule, Slope, mix_gradients
from uumamba.optim.tensors import add_gradients, average_over_ranks, global_norm, put_gradients, take_gradients
from uumamba.runtime.errors import require

NEVER = Rule()


class SharpnessAware(Optimizer):
    r"""Optimizer around another one that descends with the gradient of perturbed weights.

    A member of the family is a :class:`Rule`: direction, length and time of the climb, and the gradient to descend
    with; all else is here. One step, with g the gradient of the loss to climb at the weights w, d a direction and l its
    length:

    .. math:: \epsilon = \mathrm{reach}(\rho, l)\, d(g), \qquad
              w \leftarrow \mathrm{base}\big(w,\ \mathrm{mix}(g, \nabla L(w + \epsilon)) + \nabla A(w)\big)

    where A is ``at_weights``. If a rule knows its direction before any pass (MSAM, StaleSAM), the step has a
    single pass, at the perturbed weights. The base and this optimizer share ``param_groups``, so a scheduler may hold
    either. A group may set ``perturb=False``, which excludes its weights from perturbation and norm, and its own
    ``rho``.

    Edge cases. No climb, or rho 0 in every group: one pass, and the base's own step bit for bit. A gradient of 0:
    no perturbation. A gradient that is not finite in either pass: weights and the base's state do not change,
    ``skipped_steps`` increases by one, a scaler backs off, and data-parallel ranks agree. A closure that raises: the
    weights are restored before the error leaves the step. Parameters without a gradient are ignored.

    Args:
        params: parameters, named parameters or groups, as any torch optimizer takes them.
        base: any callable from parameters to an optimizer, such as ``partial(torch.optim.SGD, lr=0.1)``.
        rule: the member's differences; the default never climbs.
        group_defaults: options of groups that set none themselves, such as ``{"rho": 0.05}``.
        net: like ``scaler``, ``max_grad_norm``, ``accumulation`` and ``perturbation``, see :class:`EngineOptions`.

    Raises:
        UsageError: ``base`` is not a callable that returns an optimizer, or an option or a group's rho is out of range.

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
        self.base = make_base(base, make_groups(params))
        super().__init__(self.base.param_groups, self.base.defaults | {"perturb": True} | (group_defaults or {}))
        self.param_groups = self.base.param_groups
        check_groups(self.param_groups)
        self.net, self.max_grad_norm = net, max_grad_norm
        self.accumulation, self.perturbation = accumulation, perturbation
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.skipped_steps = 0
        self.numbers: dict[str, float] = {}
        self._rule = rule
        self._backup = WeightBackup()
        self._before_mix: OrderedDict[int, BeforeMix] = OrderedDict()

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch's closures return a float; these return tensors
        self,
        closure: Closure | Sequence[Closure],
        ascent: Ascent | None = None,
        at_weights: AtWeights | None = None,
    ) -> Tensor:
        """Run one whole training step.

        Args:
            closure: runs the forward pass and returns the loss, or ``(loss, outputs)``. One that also zeroed gradients
                and ran backward, as torch's own optimizers need it, is accepted where no scaler is in use. A list is
                one step accumulated over micro-batches.
            ascent: the scalar to climb, from the closure's outputs; the loss itself unless given. Without effect where
                nothing climbs.
            at_weights: returns a scalar whose gradient at the unclimbed weights is added, once per step. Of a list,
                each runs backward before the next one is called, and their gradients are added up, not averaged; None
                adds nothing, alone or in a list.

        Returns:
            The loss of the first pass, detached; its mean over the closures of a list. For MSAM and StaleSAM the only
            pass is at the perturbed weights.

        Raises:
            UsageError: a closure returned something else, its loss or the added scalar reaches no parameter, there is
                no closure, or this member cannot climb another loss.
        """
        closures = [closure] if callable(closure) else list(closure)
        require(closures, "closure", got="an empty list", expected="at least one closure")
        params = [param for group in self.param_groups for param in group["params"] if param.requires_grad]
        passes = Passes(self.net, self.scaler, params)
        self.zero_grad()
        gradients = self._differentiate(passes, at_weights)
        if not self._climbs():
            losses, _, gradients = self._descend(passes, closures, gradients)
        else:
            self._check_ascent(ascent)
            climb = self._climb_and_descend if self._rule.lead is None else self._climb_ahead
            losses, gradients = climb(passes, closures, gradients, ascent)
        put_gradients(params, gradients)
        self._update([param for param in params if param.grad is not None])
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _climbs(self) -> bool:
        has_direction = self._rule.climb is not None or self._rule.lead is not None
        return has_direction and any(group["perturb"] and group["rho"] != 0 for group in self.param_groups)

    def _check_ascent(self, ascent: Ascent | None) -> None:
        """Raise where the rule needs the gradient of the loss itself."""
        require(
            ascent is None or self._rule.takes_ascent,
            "ascent",
            got=ascent,
            expected=f"None, as {type(self).__name__} descends or climbs with gradients of the loss itself",
            fix="leave ascent out, or choose an optimizer such as SAM or ASAM",
        )

    def _differentiate(self, passes: Passes, at_weights: AtWeights | None) -> list[Tensor | None]:
        """Return the gradients of ``at_weights``, added up, at the unclimbed weights."""
        listed = [at_weights] if callable(at_weights) else at_weights or ()
        scalars = [scalar for scalar in listed if scalar is not None]
        gradients = passes.accumulate(scalars)[2]
        require(
            not scalars or any(gradient is not None for gradient in gradients),
            "at_weights",
            got="a scalar that does not depend on the optimizer's parameters",
            expected="one of the network that the optimizer trains",
            fix="make its method, such as UDIM, around that very network, not a copy",
        )
        return gradients

    def _descend(self, passes: Passes, closures: Sequence[Closure], gradients: list[Tensor | None]) -> Found:
        """Add the closures' mean gradient at the current weights to earlier gradients."""
        return passes.accumulate(closures, gradients, share=1 / len(closures), synchronise=True, count_statistics=True)

    def _climb_ahead(
        self, passes: Passes, closures: Sequence[Closure], gradients: list[Tensor | None], ascent: Ascent | None
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Climb before any pass and add the mean gradient there; no ascent."""
        assert self._rule.lead is not None  # the caller's condition
        params = list(self._perturbed())
        directions = self._rule.lead(params, self.state, self.base.state)
        slope = self._slope(dict(zip(params, directions, strict=True)))
        with self._backup.restored_after(slope.params):
            self._move(slope, slope.grads, global_norm(slope.grads))
            losses, _, gradients = self._descend(passes, closures, gradients)
        return losses, gradients

    def _climb_and_descend(
        self, passes: Passes, closures: Sequence[Closure], gradients: list[Tensor | None], ascent: Ascent | None
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Climb along the first gradient and add the gradients found there."""
        rule, params = self._rule, passes.params
        assert rule.climb is not None  # the caller's condition
        blocks = [closures] if self.accumulation == "full" else [[closure] for closure in closures]
        losses: list[Tensor] = []
        for index, block in enumerate(blocks, start=1):
            found, outputs, first = self._run_first_pass(passes, block, ascent)
            losses += found
            slope = self._slope(
                dict(zip(params, first, strict=True)),
                outputs=outputs,
                memory=self.state,
                numbers=self.numbers,
                scale=self._scale,
                replay=partial(passes.replay, block),
            )
            if rule.due is not None and not rule.due(slope):
                put_gradients(params, first)
                put_gradients(slope.params, slope.grads if rule.instead is None else rule.instead(slope))
                gradients = _take_sum(params, gradients, share=len(block) / len(closures))
                continue
            with self._backup.restored_after(slope.params):
                # If the first pass was not finite, the second gradient is multiplied by NaN, so that every rank and the
                # scaler skip the step without further messages.
                sound = 1.0 if self._move(slope, *rule.climb(slope)) else math.nan
                if rule.mix is None:
                    del slope, first, outputs  # the second pass needs their memory
                    share, last = sound / len(closures), index == len(blocks)
                    gradients = passes.accumulate(block, gradients, share=share, synchronise=last)[2]
                else:
                    second = passes.accumulate(block, share=sound / len(block), synchronise=rule.shared)[2]
                    put_gradients(params, second)
                    mix_gradients(rule.mix, slope, self._before_mix.values())
                    gradients = _take_sum(params, gradients, share=len(block) / len(closures))
        return losses, gradients

    def _run_first_pass(self, passes: Passes, block: Sequence[Closure], ascent: Ascent | None) -> Found:
        """Run the pass at the unclimbed weights; average over ranks where needed."""
        together = self._rule.shared or self.perturbation == "global"
        with self._rule.during_first():
            losses, outputs, gradients = passes.accumulate(
                block, share=1 / len(block), ascent=ascent, synchronise=together, count_statistics=True
            )
        if together and getattr(self.net, "gradient_as_bucket_view", False):  # the next backward pass overwrites them
            gradients = [None if gradient is None else gradient.clone() for gradient in gradients]
        return losses, outputs, gradients

    def _perturbed(self) -> dict[Tensor, dict[str, Any]]:
        """Return the parameters to perturb, each with its group."""
        return {
            param: group
            for group in self.param_groups
            for param in group["params"]
            if group["perturb"] and param.requires_grad
        }

    def _slope(self, gradients: Mapping[Tensor, Tensor | None], **values: Any) -> Slope:
        """Make the slope of the perturbed parameters that have a gradient."""
        owners = self._perturbed()
        found = {param: grad for param, grad in gradients.items() if grad is not None and param in owners}
        return Slope(list(found), list(found.values()), [owners[param] for param in found], **values)

    def _scale(self) -> float:
        return 1.0 if self.scaler is None else float(self.scaler.get_scale())

    def _move(self, slope: Slope, directions: Sequence[Tensor], length: Tensor) -> bool:
        """Climb unless the slope is not finite; return True where it climbed.

        Moving by a factor of 0 instead would write NaN into the weights: 0 * inf is NaN. Reading the length is the one
        wait for the device before the update. In return the climb is a single kernel that never stores the
        perturbation, and the gradient remains for a mix.
        """
        steepness = length.item()
        if not math.isfinite(steepness):
            return False
        for group in self.param_groups:
            mine = [index for index, owner in enumerate(slope.groups) if owner is group]
            if mine and group["rho"] != 0:
                factor = self._rule.reach(group, steepness)
                moved, along = [slope.params[index] for index in mine], [directions[index] for index in mine]
                torch._foreach_add_(moved, along, alpha=factor)
        torch.clear_autocast_cache()
        return True

    def _update(self, params: Sequence[Tensor]) -> None:
        """Clip and step the base; skip a gradient that is not finite."""
        require(
            params,
            "params",
            got="parameters that the loss does not reach",
            expected="some that it reaches",
            fix="check the parameters that the optimizer was made with",
        )
        gradients = [param.grad for param in params if param.grad is not None]
        averaged: set[Tensor] = set()  # by the wrapper; parameters outside it, such as learned loss weights, are not
        if isinstance(self.net, DistributedDataParallel) and self._rule.mix is None and self._rule.due is None:
            averaged = set(self.net.parameters())
        average_over_ranks(
            self.net, [grad for param, grad in zip(params, gradients, strict=True) if param not in averaged]
        )
        if self.scaler is not None:
            self.scaler.unscale_(self.base)
        norm = global_norm(gradients, join_small=False)  # as torch clips
        if math.isfinite(norm.item()):
            if self.max_grad_norm is not None:
                clip_grads_with_norm_(params, self.max_grad_norm, norm)
            if self._rule.remember is not None:
                self._rule.remember([param for param in self._perturbed() if param.grad is not None], self.state)
            self.base.step() if self.scaler is None else self.scaler.step(self.base)
            torch.clear_autocast_cache()
        else:
            self.skipped_steps += 1
        if self.scaler is not None:
            self.scaler.update()

    def register_before_mix(self, hook: BeforeMix) -> RemovableHandle:
        """Register ``hook(slope, second)``, called with both gradients before they are mixed.

        It is called once per climb, which is once per accumulated micro-batch, and may change ``slope.grads`` and
        ``second`` in place; values that it keeps in ``slope.memory`` and ``slope.numbers`` are saved with the
        optimizer.

        Raises:
            UsageError: this optimizer does not descend along the first gradient; only SAGM does.
        """
        require(
            self._rule.descends_with_first,
            "optimizer",
            got=type(self).__name__,
            expected="SAGM, whose update contains the first gradient",
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
        """Return a copy's content, without a scheduler's wrapper of ``step``.

        The wrapper would step the original. The copy keeps hooks (copies of their objects, where they are methods), and
        trains on as the original would.
        """
        return {name: value for name, value in vars(self).items() if name != "step"}

    def state_dict(self) -> dict[str, Any]:
        """Return torch's layout plus ``base``, ``scaler``, ``skipped_steps`` and ``numbers``."""
        return super().state_dict() | {
            "base": self.base.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "skipped_steps": self.skipped_steps,
            "numbers": dict(self.numbers),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load another optimizer's state, with its base's and its scaler's.

        Raises:
            UsageError: the state is not one of this family's.
            ValueError: it has other parameter groups.
        """
        require(
            state_dict.keys() >= {"base", "scaler", "skipped_steps"},
            "state_dict",
            got=f"keys {', '.join(state_dict)}",
            expected="also base, scaler and skipped_steps",
            fix="load a state of torch's own optimizer by base.load_state_dict",
        )
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups
        if self.scaler is not None and state_dict["scaler"] is not None:
            self.scaler.load_state_dict(state_dict["scaler"])
        self.skipped_steps = state_dict["skipped_steps"]
        self.numbers = dict(state_dict.get("numbers", {}))  # missing in states written before rules had any


def _take_sum(params: Sequence[Tensor], gradients: list[Tensor | None], *, share: float) -> list[Tensor | None]:
    """Take the parameters' gradients times ``share``, plus the given gradients."""
    found = [param.grad for param in params if param.grad is not None]
    if found and share != 1:
        torch._foreach_mul_(found, share)
    add_gradients(params, gradients)
    return take_gradients(params)
