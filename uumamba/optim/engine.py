"""Engine of uumamba.optim: perturb, compute the second gradient, restore, update."""

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from uumamba.optim.foreign_calls import explain_arguments, raise_for_method
from uumamba.optim.groups import BaseFactory, Params, check_groups, check_names, make_base, make_groups
from uumamba.optim.passes import Ascent, AtWeights, Closure, Passes, PassResults
from uumamba.optim.restore import StatisticsBackup, WeightBackup
from uumamba.optim.rules import BeforeMix, FirstPass, Rule, mix_gradients
from uumamba.optim.tensors import add_gradients, average_over_ranks, global_norm, put_gradients, take_gradients
from uumamba.runtime.errors import require
from uumamba.runtime.options import Positive, check_options
from uumamba.runtime.shown_signature import spell_out

TORCH_OPTIONS = {"foreach", "fused", "capturable", "differentiable", "maximize", "decoupled_weight_decay"}
"""Options of torch's optimizers that states of earlier versions lack."""


class SharpnessAware(Optimizer):
    r"""Optimizer around a base that descends with the gradient of perturbed weights.

    Each optimizer of uumamba.optim has a :class:`Rule`: direction, length and time of the perturbation, and the
    gradient to descend with. One step, with g the gradient of the ascent loss at the weights w, d a direction and l its
    length:

    .. math:: \epsilon = \mathrm{factor}(\rho, l)\, d(g), \qquad
              w \leftarrow \mathrm{base}\big(w,\ \mathrm{mix}(g, \nabla L(w + \epsilon)) + \nabla A(w)\big)

    where A is ``at_weights``. If a rule knows its direction before any pass (MSAM, StaleSAM), the step has a
    single pass, at the perturbed weights. The base and this optimizer share ``param_groups``, so a scheduler may hold
    either optimizer. A group may set ``perturb=False``, which excludes its weights from perturbation and norm, and its
    own ``rho``.

    Edge cases. No perturbation, or rho 0 in every group: one pass, and the base's own step bit for bit. A gradient of
    0: no perturbation. A gradient that is not finite in either pass: weights and the base's state do not change,
    ``skipped_steps`` increases by one, a scaler backs off, data-parallel ranks agree, and running statistics that are
    no longer finite are restored if ``net`` is given. A closure that raises: the weights are restored before the error
    leaves the step. Parameters without a gradient are ignored.

    Args:
        params: parameters, named parameters or groups, as any torch optimizer takes them.
        base: any callable from parameters to an optimizer, such as ``partial(torch.optim.SGD, lr=0.1)``.
        rule: the optimizer's rule; the default never perturbs.
        group_defaults: default options of groups, such as ``{"rho": 0.05}``.
        net: the network, for data-parallel training; see :class:`EngineOptions`.
        scaler: the fp16 gradient scaler.
        max_grad_norm: bound of the final gradient's norm.
        accumulation: perturb for each of several closures, or once for all.
        perturbation: perturb each of several ranks along its own gradient, or all along the averaged one.

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

    accepts_ascent: ClassVar[bool] = True
    """Whether ``step`` may get an ``ascent``; see :attr:`Rule.accepts_ascent`."""
    unused_options: ClassVar[tuple[str, ...]] = ()
    """Options of the family without effect in a member."""

    @check_options
    def __init__(
        self,
        params: Params,
        base: BaseFactory,
        *,
        rule: Rule | None = None,
        group_defaults: dict[str, Any] | None = None,
        net: nn.Module | None = None,
        scaler: torch.amp.GradScaler | None = None,
        max_grad_norm: Positive | None = None,
        accumulation: Literal["micro", "full"] = "micro",
        perturbation: Literal["rank", "global"] = "rank",
    ) -> None:
        self.base = make_base(base, make_groups(params))
        super().__init__(self.base.param_groups, self.base.defaults | {"perturb": True} | (group_defaults or {}))
        self.param_groups = self.base.param_groups
        check_groups(self.param_groups)
        check_names(self.param_groups, self.defaults)
        _check_net(net, self.param_groups)
        self.net, self.max_grad_norm = net, max_grad_norm
        self.accumulation, self.perturbation = accumulation, perturbation
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.skipped_steps = 0
        self.numbers: dict[str, float] = {}
        self._rule = rule or Rule()
        self._backup = WeightBackup()
        self._before_mix: OrderedDict[int, BeforeMix] = OrderedDict()
        self.base.register_load_state_dict_post_hook(self._share_groups)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = explain_arguments(cls.__init__)  # type: ignore[method-assign]  # with the same signature
            spell_out(cls, SharpnessAware.__init__)

    def __getattr__(self, name: str) -> NoReturn:
        raise_for_method(self, name)

    @classmethod
    def needs_logits(cls, options: Mapping[str, Any]) -> bool:
        """Return whether closures must return logits, given the member's own options."""
        return False

    @torch.no_grad()
    def step(  # type: ignore[override]  # torch's closures return a float; these return tensors
        self,
        closure: Closure | Sequence[Closure] | None = None,
        ascent: Ascent | None = None,
        at_weights: AtWeights | None = None,
    ) -> Tensor:
        """Run one whole training step.

        Args:
            closure: runs the forward pass and returns the loss, or ``(loss, outputs)``. A closure that also zeroed
                gradients and ran backward, as for torch's own optimizers, is accepted without a scaler. A list is one
                step accumulated over micro-batches.
            ascent: returns the ascent loss, a scalar of the closure's outputs; by default the loss itself. Without
                effect in a step that does not perturb.
            at_weights: returns a scalar whose gradient at the original weights is added, once per step. Each scalar of
                a list runs backward before the next one is computed, and the gradients are summed, not averaged; None
                adds nothing, also in a list.

        Returns:
            The loss of the first pass, detached; its mean over the closures of a list. For MSAM and StaleSAM the only
            pass is at the perturbed weights.

        Raises:
            UsageError: there is no closure or a closure returned no loss, the loss or the added scalar does not depend
                on the parameters, or this optimizer accepts no ascent loss.
        """
        is_given = callable(closure) or (isinstance(closure, Iterable) and not isinstance(closure, Tensor))
        require(
            is_given,
            "closure",
            got="no closure" if closure is None else type(closure).__name__,
            expected="a function that returns the loss",
            fix="write optimizer.step(lambda: loss_fn(net(x), y)), without backward; give a scaler as scaler=scaler",
        )
        closures = [closure] if callable(closure) else list(closure or ())
        require(closures, "closure", got="an empty list", expected="at least one closure")
        _check_functions("closure", closures)
        params = [param for group in self.param_groups for param in group["params"] if param.requires_grad]
        passes = Passes(self.net, self.scaler, params)
        statistics = StatisticsBackup(self.net)
        self.zero_grad()
        listed = [at_weights] if callable(at_weights) else () if at_weights is None else at_weights
        require(isinstance(listed, Sequence), "at_weights", got=at_weights, expected="a function, a list or None")
        scalars = [scalar for scalar in listed if scalar is not None]
        _check_functions("at_weights", scalars)
        gradients = passes.accumulate(scalars)[2]
        require(
            not scalars or any(gradient is not None for gradient in gradients),
            "at_weights",
            got="a scalar that does not depend on the optimizer's parameters",
            expected="a scalar of the optimizer's network",
            fix="make the method, such as UDIM, with the optimizer's network and not with a copy",
        )
        if not self._perturbs():
            losses, _, gradients = self._descend(passes, closures, gradients)
        else:
            require(
                ascent is None or self._rule.accepts_ascent,
                "ascent",
                got=ascent,
                expected=f"None for {type(self).__name__}",
                fix="leave ascent out, or choose an optimizer such as SAM or ASAM",
            )
            require(
                ascent is None or (callable(ascent) and not isinstance(ascent, type)),
                "ascent",
                got=ascent,
                expected="a function of the closure's outputs",
                fix="make an instance first: OutputBiasForgetting()",
            )
            perturb = self._perturb_and_descend if self._rule.early_direction is None else self._perturb_before_pass
            losses, gradients = perturb(passes, closures, gradients, ascent)
        put_gradients(params, gradients)
        if not self._update([param for param in params if param.grad is not None]):
            self.skipped_steps += 1
            statistics.restore_not_finite()
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def _perturbs(self) -> bool:
        has_direction = self._rule.direction is not None or self._rule.early_direction is not None
        return has_direction and any(group["perturb"] and group["rho"] != 0 for group in self.param_groups)

    def _descend(self, passes: Passes, closures: Sequence[Closure], gradients: list[Tensor | None]) -> PassResults:
        """Add the closures' mean gradient at the current weights to earlier gradients."""
        return passes.accumulate(closures, gradients, share=1 / len(closures), synchronise=True, count_statistics=True)

    def _perturb_before_pass(
        self, passes: Passes, closures: Sequence[Closure], gradients: list[Tensor | None], ascent: Ascent | None
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Perturb before any pass and add the mean gradient there; no ascent."""
        assert self._rule.early_direction is not None  # the caller's condition
        params = list(self._find_perturbed())
        directions = self._rule.early_direction(params, self.state, self.base.state)
        first = self._select_perturbed(dict(zip(params, directions, strict=True)))
        with self._backup.restore_after(first.params):
            self._perturb(first, first.grads, global_norm(first.grads))
            losses, _, gradients = self._descend(passes, closures, gradients)
        return losses, gradients

    def _perturb_and_descend(
        self, passes: Passes, closures: Sequence[Closure], gradients: list[Tensor | None], ascent: Ascent | None
    ) -> tuple[list[Tensor], list[Tensor | None]]:
        """Perturb along the first gradient and add the gradients computed there."""
        rule, params = self._rule, passes.params
        assert rule.direction is not None  # the caller's condition
        blocks = [closures] if self.accumulation == "full" else [[closure] for closure in closures]
        losses: list[Tensor] = []
        for index, block in enumerate(blocks, start=1):
            found, outputs, grads = self._run_first_pass(passes, block, ascent)
            losses += found
            first = self._select_perturbed(
                dict(zip(params, grads, strict=True)),
                outputs=outputs,
                memory=self.state,
                numbers=self.numbers,
                scale=self._scale,
                replay=partial(passes.replay, block),
            )
            if rule.is_due is not None and not rule.is_due(first):
                put_gradients(params, grads)
                put_gradients(first.params, first.grads if rule.undue_gradient is None else rule.undue_gradient(first))
                gradients = _take_sum(params, gradients, share=len(block) / len(closures))
                continue
            with self._backup.restore_after(first.params):
                # If the first pass was not finite, the second gradient is multiplied by NaN, so that every rank and the
                # scaler skip the step without further communication.
                factor = 1.0 if self._perturb(first, *rule.direction(first)) else math.nan
                if rule.mix is None:
                    del first, grads, outputs  # the second pass needs their memory
                    share, last = factor / len(closures), index == len(blocks)
                    gradients = passes.accumulate(block, gradients, share=share, synchronise=last)[2]
                else:
                    second = passes.accumulate(block, share=factor / len(block), synchronise=rule.is_shared)[2]
                    put_gradients(params, second)
                    mix_gradients(rule.mix, first, self._before_mix.values())
                    gradients = _take_sum(params, gradients, share=len(block) / len(closures))
        return losses, gradients

    def _run_first_pass(self, passes: Passes, block: Sequence[Closure], ascent: Ascent | None) -> PassResults:
        """Run the pass at the original weights; average over ranks if needed."""
        synchronise = self._rule.is_shared or self.perturbation == "global"
        with self._rule.first_pass_context():
            losses, outputs, gradients = passes.accumulate(
                block, share=1 / len(block), ascent=ascent, synchronise=synchronise, count_statistics=True
            )
        # The next backward pass overwrites gradients that are views of a wrapper's buckets.
        if synchronise and getattr(self.net, "gradient_as_bucket_view", False):
            gradients = [None if gradient is None else gradient.clone() for gradient in gradients]
        return losses, outputs, gradients

    def _find_perturbed(self) -> dict[Tensor, dict[str, Any]]:
        """Return the parameters to perturb, each with its group."""
        return {
            param: group
            for group in self.param_groups
            for param in group["params"]
            if group["perturb"] and param.requires_grad
        }

    def _select_perturbed(self, gradients: Mapping[Tensor, Tensor | None], **values: Any) -> FirstPass:
        """Select the parameters to perturb that have a gradient."""
        owners = self._find_perturbed()
        found = {param: grad for param, grad in gradients.items() if grad is not None and param in owners}
        return FirstPass(list(found), list(found.values()), [owners[param] for param in found], **values)

    def _scale(self) -> float:
        return 1.0 if self.scaler is None else float(self.scaler.get_scale())

    def _perturb(self, first: FirstPass, directions: Sequence[Tensor], length: Tensor) -> bool:
        """Perturb the weights; return False for a length that is not finite.

        Adding the direction times 0 instead would write NaN into the weights: 0 * inf is NaN. Reading the length is the
        only wait for the device before the update. The perturbation is a single kernel that never stores it, and the
        gradient remains for a mix.
        """
        norm = length.item()
        if not math.isfinite(norm):
            return False
        for group in self.param_groups:
            own = [index for index, owner in enumerate(first.groups) if owner is group]
            if own and group["rho"] != 0:
                weights, steps = [first.params[index] for index in own], [directions[index] for index in own]
                torch._foreach_add_(weights, steps, alpha=self._rule.factor(group, norm))
        torch.clear_autocast_cache()
        return True

    def _update(self, params: Sequence[Tensor]) -> bool:
        """Clip and step; return False for a gradient that is not finite."""
        require(
            params,
            "params",
            got="parameters without a gradient of the loss",
            expected="at least one parameter with a gradient",
            fix="give the optimizer the parameters of the trained network",
        )
        gradients = [param.grad for param in params if param.grad is not None]
        averaged: set[Tensor] = set()  # by the wrapper, which excludes parameters such as learned loss weights
        if isinstance(self.net, DistributedDataParallel) and self._rule.mix is None and self._rule.is_due is None:
            averaged = set(self.net.parameters())
        average_over_ranks(
            self.net, [grad for param, grad in zip(params, gradients, strict=True) if param not in averaged]
        )
        if self.scaler is not None:
            self.scaler.unscale_(self.base)
        norm = global_norm(gradients, join_small=False)  # as torch clips
        is_finite = math.isfinite(norm.item())
        if is_finite:
            if self.max_grad_norm is not None:
                clip_grads_with_norm_(params, self.max_grad_norm, norm)
            if self._rule.remember is not None:
                self._rule.remember([param for param in self._find_perturbed() if param.grad is not None], self.state)
            self.base.step() if self.scaler is None else self.scaler.step(self.base)
            torch.clear_autocast_cache()
        if self.scaler is not None:
            self.scaler.update()
        return is_finite

    def register_before_mix(self, hook: BeforeMix) -> RemovableHandle:
        """Register ``hook(first, second)``, called before both gradients are mixed.

        The hook is called once per perturbation, which is once per accumulated micro-batch, and may change
        ``first.grads`` and ``second`` in place. Values in ``first.memory`` and ``first.numbers`` are saved with the
        optimizer.

        Raises:
            UsageError: this optimizer does not mix the training loss's gradient at the original weights with the one at
                the perturbed weights; only SAGM does.
        """
        require(
            self._rule.mixes_task_gradient,
            "optimizer",
            got=type(self).__name__,
            expected="an optimizer that mixes the training loss's gradient into its update",
            fix="choose SAGM",
        )
        handle = RemovableHandle(self._before_mix)
        self._before_mix[handle.id] = hook
        return handle

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, which this optimizer and its base share."""
        if self.param_groups is not self.base.param_groups:  # called by torch's constructor for each group of the base
            super().add_param_group(param_group)
            return
        [param_group] = make_groups([param_group])
        check_groups([self.defaults | param_group])
        check_names([param_group], self.defaults)
        self.base.add_param_group(param_group)
        for name, value in self.defaults.items():
            param_group.setdefault(name, value)

    def _share_groups(self, base: Optimizer) -> None:
        """Share the base's groups again after it has loaded a state."""
        for group, own in zip(base.param_groups, self.param_groups, strict=True):
            for name in self.defaults.keys() & own.keys():
                group.setdefault(name, own[name])
        self.param_groups = base.param_groups

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.base.register_load_state_dict_post_hook(self._share_groups)  # a copy of the base has no hooks

    def __getstate__(self) -> dict[str, Any]:
        """Return the content of a copy, without a scheduler's wrapper of ``step``.

        The wrapper would step the original. The copy keeps hooks (methods as methods of copied objects), and continues
        training like the original.
        """
        return {name: value for name, value in vars(self).items() if name != "step"}

    def state_dict(self) -> dict[str, Any]:
        """Return torch's layout plus base, scaler, skipped_steps, numbers and optimizer."""
        return super().state_dict() | {
            "base": self.base.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "skipped_steps": self.skipped_steps,
            "numbers": dict(self.numbers),
            "optimizer": type(self).__name__,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load another optimizer's state, including its base and scaler.

        Raises:
            UsageError: the state is not from this optimizer of uumamba.optim, or its base is another one.
            ValueError: the state has other parameter groups.
        """
        require(
            state_dict.keys() >= {"base", "scaler", "skipped_steps"},
            "state_dict",
            got=f"keys {', '.join(state_dict)}",
            expected="the keys base, scaler and skipped_steps as well",
            fix="load the state of a torch optimizer by base.load_state_dict",
        )
        kind = type(self).__name__
        require(
            state_dict.get("optimizer", kind) == kind,  # absent in states of earlier versions
            "state_dict",
            got=f"the state of {state_dict.get('optimizer')}, with its rho",
            expected=f"the state of {kind}",
            fix='write optimizer.base.load_state_dict(state["base"]) to continue with the base\'s momentum alone',
        )
        missing = self.base.defaults.keys() - state_dict["base"]["param_groups"][0].keys() - TORCH_OPTIONS
        require(
            not missing,
            "state_dict",
            got=f"a base without {', '.join(sorted(missing))}",
            expected=f"the state of {type(self.base).__name__}",
            fix="make the optimizer with the base of the state",
        )
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self.base.load_state_dict(state_dict["base"])
        self.param_groups = self.base.param_groups
        if self.scaler is not None and state_dict["scaler"] is not None:
            self.scaler.load_state_dict(state_dict["scaler"])
        self.skipped_steps = state_dict["skipped_steps"]
        self.numbers = dict(state_dict.get("numbers", {}))  # absent in states of earlier versions


def _check_functions(name: str, given: Sequence[Any]) -> None:
    for each in given:
        require(
            callable(each),
            name,
            got=f"a list with an object of class {type(each).__name__}",
            expected="functions that return a scalar",
            fix="write lambda: loss_fn(net(x), y) in place of its value",
        )


def _check_net(net: nn.Module | None, groups: Sequence[Mapping[str, Any]]) -> None:
    """Raise for another network than the one whose parameters are trained."""
    trained = {id(param) for group in groups for param in group["params"]}
    require(
        net is None or any(id(param) in trained for param in net.parameters()),
        "net",
        got="a network without any of the optimizer's parameters",
        expected="the network that is trained",
        fix="write SAM(net.parameters(), base, net=net)",
    )


def _take_sum(params: Sequence[Tensor], gradients: list[Tensor | None], *, share: float) -> list[Tensor | None]:
    """Take the parameters' gradients times ``share`` plus the given gradients."""
    found = [param.grad for param in params if param.grad is not None]
    if found and share != 1:
        torch._foreach_mul_(found, share)
    add_gradients(params, gradients)
    return take_gradients(params)
