"""Optimizers by name: a base of torch's, and the family's rule around it."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import nn
from torch.optim import Optimizer

from uumamba.config.base import Config

if TYPE_CHECKING:
    from uumamba.optim.engine import SharpnessAware


class SGDConfig(Config):
    """Stochastic gradient descent, nnU-Net's defaults."""

    name: Literal["SGD"]
    lr: PositiveFloat = 0.01
    momentum: NonNegativeFloat = 0.99
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 3e-5

    def build(self) -> Callable[..., Optimizer]:
        """A callable from parameters to the optimizer."""
        from torch.optim import SGD

        return partial(SGD, **self.model_dump(exclude={"name"}))


class AdamWConfig(Config):
    """Adam with decoupled weight decay."""

    name: Literal["AdamW"]
    lr: PositiveFloat = 1e-3
    betas: tuple[NonNegativeFloat, NonNegativeFloat] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 1e-2

    def build(self) -> Callable[..., Optimizer]:
        """A callable from parameters to the optimizer."""
        from torch.optim import AdamW

        return partial(AdamW, **self.model_dump(exclude={"name"}))


BaseConfig = Annotated[SGDConfig | AdamWConfig, Field(discriminator="name")]


class _AroundBase(Config):
    """What every member of the family has: a base to wrap and a bound on the gradient's norm."""

    name: str
    base: BaseConfig
    max_grad_norm: PositiveFloat | None = 12.0

    def build(self, net: nn.Module, objective: nn.Module, **engine: Any) -> "SharpnessAware":
        """The optimizer of the network's and the objective's parameters."""
        from uumamba import optim

        make: Callable[..., SharpnessAware] = getattr(optim, self.name)
        arguments = self.model_dump(exclude={"name", "base"}) | {"net": net} | engine
        return make(parameter_groups(net, objective), self.base.build(), **arguments)


class PlainConfig(_AroundBase):
    """The base alone, behind the family's interface."""

    name: Literal["Plain"]


class SAMConfig(_AroundBase):
    """Sharpness-aware minimisation."""

    name: Literal["SAM"]
    rho: NonNegativeFloat = 0.05


class ASAMConfig(_AroundBase):
    """Adaptive (scale-invariant) sharpness-aware minimisation."""

    name: Literal["ASAM"]
    rho: NonNegativeFloat = 0.5
    eta: NonNegativeFloat = 0.01
    normalize_bias: bool = False


OptimConfig = Annotated[PlainConfig | SAMConfig | ASAMConfig, Field(discriminator="name")]


def parameter_groups(net: nn.Module, objective: nn.Module) -> list[dict[str, Any]]:
    """Two groups: the network's, and the objective's own weights, which neither decay nor climb."""
    groups: list[dict[str, Any]] = [{"params": _learning(net.parameters())}]
    own = _learning(objective.parameters())
    if own:
        groups.append({"params": own, "weight_decay": 0.0, "perturb": False})
    return groups


def _learning(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]
