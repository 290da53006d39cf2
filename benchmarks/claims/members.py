"""Recipes of the sharpness-aware family, with one tuned number each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from benchmarks.claims.training import Base, Recipe
from uumamba import optim
from uumamba.config.optim import parameter_groups
from uumamba.runtime.observer import Observer, RunView
from uumamba.training import SupervisedObjective

DOUBLED = (0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Member:
    """Training method of the family.

    Attributes:
        optimizer: the class around the base optimizer.
        number: name of the argument that is tuned on validation data; None if there is none.
        grid: candidates for the number; the first is the published default unless ``published`` is given.
        published: the number that is used without tuning.
        options: other arguments of the optimizer.
        objective: function of loss, network and number that makes the objective; None uses the loss, and the number is
            an argument of the optimizer.
        ascent: function that makes the loss for the ascent step.
        only: function that returns parameter groups of which some are not perturbed; None perturbs all parameters.
    """

    optimizer: Callable[..., optim.SharpnessAware]
    number: str | None = None
    grid: tuple[float, ...] = ()
    published: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    objective: Callable[..., nn.Module] | None = None
    ascent: Callable[[], Any] | None = None
    only: Callable[[nn.Module], Any] | None = None

    def build(
        self,
        net: nn.Module,
        loss: nn.Module,
        base: Base,
        value: float | None = None,
        *,
        engine: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> Recipe:
        """Make the complete recipe to train a network.

        Args:
            net: the network.
            loss: ``loss(logits, label)``; its parameters learn, without weight decay and perturbation.
            base: function from parameters to an optimizer.
            value: the member's number; None uses the published number.
            engine: options that every optimizer of the family accepts, such as ``max_grad_norm``.
            extra: further arguments of the objective, or of the optimizer if the objective is the loss.
        """
        chosen = {} if self.number is None else {self.number: self.published if value is None else value}
        objective: nn.Module = SupervisedObjective(loss, outputs=True)
        if self.objective is not None:
            objective, chosen, extra = self.objective(loss, net, **chosen, **extra), {}, {}
        groups = parameter_groups(net, objective)
        if self.only is not None:
            groups[:1] = self.only(net)
        optimizer = self.optimizer(groups, base, net=net, **self.options, **chosen, **extra, **(engine or {}))
        if isinstance(objective, Observer):
            optimizer.register_step_post_hook(lambda *_: objective.on_step(RunView(net=net)))
        return Recipe(net, objective, optimizer, None if self.ascent is None else self.ascent())


def _make_perturbing_member(
    optimizer: Callable[..., optim.SharpnessAware], grid: tuple[float, ...] = DOUBLED, **rest: Any
) -> Member:
    published = rest.pop("published", grid[0])
    return Member(optimizer, "rho", grid, published, rest.pop("options", {}), **rest)


def _make_mesa(loss: nn.Module, net: nn.Module, **chosen: Any) -> nn.Module:
    return optim.MESA(loss, net, **chosen)


def _make_saf(loss: nn.Module, net: nn.Module, **chosen: Any) -> nn.Module:
    return optim.SAF(loss, **chosen)


MEMBERS: dict[str, Member] = {
    "base": Member(optim.Plain),
    "SAM": _make_perturbing_member(optim.SAM),
    "ASAM": _make_perturbing_member(optim.ASAM, (0.5, 1.0, 2.0, 4.0)),
    "GSAM": _make_perturbing_member(optim.GSAM, options={"alpha": 0.4}),
    "FriendlySAM": _make_perturbing_member(optim.FriendlySAM),
    "LookSAM(5)": _make_perturbing_member(optim.LookSAM, options={"k": 5}),
    "MSAM": _make_perturbing_member(optim.MSAM, (0.3, 1.0, 3.0, 9.0)),
    "StaleSAM": _make_perturbing_member(optim.StaleSAM),
    "SAGM": _make_perturbing_member(optim.SAGM),
    "TRAM, previous": _make_perturbing_member(optim.TRAM, (1.0, 4.0, 16.0, 64.0), options={"trust": "previous"}),
    "TRAM, initial": _make_perturbing_member(
        optim.TRAM, (0.1, 0.3, 1.0, 3.0), published=1.0, options={"trust": "initial"}
    ),
    "TRAM, noise": _make_perturbing_member(optim.TRAM, (1.0, 4.0, 16.0, 64.0), options={"trust": "noise"}),
    "TRAM, fisher": _make_perturbing_member(
        optim.TRAM, (0.5, 1.0, 2.0, 4.0), published=1.0, options={"trust": "fisher"}
    ),
    "OBF": _make_perturbing_member(optim.SAM, ascent=optim.OutputBiasForgetting),
    "SAM, norms alone": _make_perturbing_member(optim.SAM, only=optim.norm_layers_only),
    "SAF": Member(optim.Plain, "weight", (0.1, 0.3, 1.0, 3.0), 0.3, objective=_make_saf),
    "MESA": Member(optim.Plain, "decay", (0.9, 0.97, 0.99, 0.9998), 0.9998, objective=_make_mesa),
}
