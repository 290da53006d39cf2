"""Optimizers by name: a base of torch's, and the family's rule around it."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from uumamba.config.ascent import AscentConfig, check_ascent
from uumamba.config.base import Config

if TYPE_CHECKING:
    from uumamba.optim import AdaptiveTrigger
    from uumamba.optim.engine import SharpnessAware

Perturbed = Literal["all", "norm_layers"]
Perturbation = Literal["rank", "global"]


class SGDConfig(Config):
    """Stochastic gradient descent, nnU-Net's defaults."""

    name: Literal["SGD"]
    lr: PositiveFloat = 0.01
    momentum: NonNegativeFloat = 0.99
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 3e-5

    def build(self, *, fused: bool = False) -> Callable[..., Optimizer]:
        """A callable from parameters to the optimizer, whose step may be a single kernel."""
        from torch.optim import SGD

        return partial(SGD, **self.model_dump(exclude={"name"}), fused=fused or None)


class AdamWConfig(Config):
    """Adam with decoupled weight decay."""

    name: Literal["AdamW"]
    lr: PositiveFloat = 1e-3
    betas: tuple[NonNegativeFloat, NonNegativeFloat] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 1e-2

    def build(self, *, fused: bool = False) -> Callable[..., Optimizer]:
        """A callable from parameters to the optimizer, whose step may be a single kernel."""
        from torch.optim import AdamW

        return partial(AdamW, **self.model_dump(exclude={"name"}), fused=fused or None)


BaseConfig = Annotated[SGDConfig | AdamWConfig, Field(discriminator="name")]


class _AroundBase(Config):
    """What every member of the family has: a base to wrap, a bound on the gradient's norm, perhaps a loss to climb."""

    name: str
    base: BaseConfig
    max_grad_norm: PositiveFloat | None = 12.0
    ascent: AscentConfig | None = None

    @model_validator(mode="after")
    def _ascent_is_climbed(self) -> "_AroundBase":
        check_ascent(self.name, self.ascent)
        return self

    @property
    def needs_logits(self) -> bool:
        """Whether the objective must return logits and label beside the loss."""
        return self.ascent is not None

    def build_ascent(self) -> Callable[[Any], Tensor] | None:
        """The scalar to climb, from logits and label; None is the loss itself."""
        return None if self.ascent is None else self.ascent.build()

    def build(self, net: nn.Module, objective: nn.Module, **engine: Any) -> "SharpnessAware":
        """The optimizer of the network's and the objective's parameters."""
        from uumamba import optim

        make: Callable[..., SharpnessAware] = getattr(optim, self.name)
        arguments = {key: _built(value) for key, value in self if key not in ("name", "base", "ascent", "perturb")}
        base = self.base.build(fused=fuses(net))
        groups = parameter_groups(net, objective, perturb=getattr(self, "perturb", "all"))
        return make(groups, base=base, **arguments, **({"net": net} | engine))


class PlainConfig(_AroundBase):
    """The base alone, behind the family's interface."""

    name: Literal["Plain"]


class _Climber(_AroundBase):
    """What every member that perturbs weights has.

    All of the network's are perturbed, or its norm layers' alone (SAM-ON); and where several processes train together,
    by each along its own gradient or by all along the averaged one.
    """

    perturb: Perturbed = "all"
    perturbation: Perturbation = "rank"


class SAMConfig(_Climber):
    """Sharpness-aware minimisation."""

    name: Literal["SAM"]
    rho: NonNegativeFloat = 0.05


class ASAMConfig(_Climber):
    """Adaptive (scale-invariant) sharpness-aware minimisation."""

    name: Literal["ASAM"]
    rho: NonNegativeFloat = 0.5
    eta: NonNegativeFloat = 0.01
    normalize_bias: bool = False


class TRAMConfig(_Climber):
    """Adaptive SAM whose radius is how far the network's own answers have moved."""

    name: Literal["TRAM"]
    trust: Literal["previous", "initial", "noise", "fisher"] = "previous"
    rho: NonNegativeFloat = 1.0
    sigma: PositiveFloat = 0.1
    max_distance: PositiveFloat | None = None
    min_distance: NonNegativeFloat = 0.0
    eta: NonNegativeFloat = 0.1
    gamma: PositiveFloat = 0.1
    seed: NonNegativeInt = 0

    @property
    def needs_logits(self) -> bool:
        """All forms but one measure a distance between logits."""
        return self.ascent is not None or self.trust != "fisher"


class GSAMConfig(_Climber):
    """SAM that also lowers the surrogate gap; with ``rho_min`` and ``lr_max`` its radius follows the learning rate."""

    name: Literal["GSAM"]
    rho: NonNegativeFloat = 0.05
    alpha: NonNegativeFloat = 0.4
    rho_min: NonNegativeFloat | None = None
    lr_max: PositiveFloat | None = None
    lr_min: NonNegativeFloat = 0.0


class FriendlySAMConfig(_Climber):
    """SAM that climbs only along what is new in a batch."""

    name: Literal["FriendlySAM"]
    rho: NonNegativeFloat = 0.05
    sigma: NonNegativeFloat = 1.0
    lam: float = Field(0.9, ge=0, lt=1)


class AdaptiveTriggerConfig(Config):
    """Climbs where the gradient is large for this stage of a training of so many steps."""

    total_steps: PositiveInt
    start: float = 1.0
    end: float = -1.0
    decay: float = Field(0.9, ge=0, lt=1)

    def build(self) -> "AdaptiveTrigger":
        """The trigger for LookSAM."""
        from uumamba.optim import AdaptiveTrigger

        return AdaptiveTrigger(**self.model_dump())


class LookSAMConfig(_Climber):
    """SAM with a second pass every k steps, or where a trigger says so."""

    name: Literal["LookSAM"]
    rho: NonNegativeFloat = 0.05
    k: PositiveInt = 5
    alpha: NonNegativeFloat = 0.7
    trigger: AdaptiveTriggerConfig | None = None


class MSAMConfig(_Climber):
    """SAM along the base's momentum, in one pass."""

    name: Literal["MSAM"]
    rho: NonNegativeFloat = 0.3


class StaleSAMConfig(_Climber):
    """SAM along the last step's gradient, in one pass."""

    name: Literal["StaleSAM"]
    rho: NonNegativeFloat = 0.05


class SAGMConfig(_Climber):
    """Sharpness-aware gradient matching."""

    name: Literal["SAGM"]
    rho: NonNegativeFloat = 0.05
    alpha: NonNegativeFloat = 0.001


OptimConfig = Annotated[
    PlainConfig
    | SAMConfig
    | ASAMConfig
    | GSAMConfig
    | FriendlySAMConfig
    | LookSAMConfig
    | MSAMConfig
    | StaleSAMConfig
    | SAGMConfig
    | TRAMConfig,
    Field(discriminator="name"),
]


def parameter_groups(net: nn.Module, objective: nn.Module, *, perturb: Perturbed = "all") -> list[dict[str, Any]]:
    """The network's, in two groups where its norm layers alone climb, and the objective's, which do not decay or climb.

    The scales of a quantised network stand in groups of their own, which do not decay.

    Raises:
        ValueError: only norm layers shall climb, and the network has none with parameters.
    """
    groups: list[dict[str, Any]] = [{"params": _learning(net.parameters())}]
    if perturb == "norm_layers":
        from uumamba.optim import norm_layers_only

        groups = [group | {"params": _learning(group["params"])} for group in norm_layers_only(net)]
    groups = _scales_apart(groups, net)
    own = _learning(objective.parameters())
    if own:
        groups.append({"params": own, "weight_decay": 0.0, "perturb": False})
    return groups


def _scales_apart(groups: list[dict[str, Any]], net: nn.Module) -> list[dict[str, Any]]:
    """Each group that holds scales of quantisers in two, the second of them without decay."""
    from uumamba.quantization import quantizer_scales

    scales = set(quantizer_scales(net).values())
    if not scales:
        return groups
    parts = []
    for group in groups:
        parts.append(group | {"params": [param for param in group["params"] if param not in scales]})
        parts.append(group | {"params": [param for param in group["params"] if param in scales], "weight_decay": 0.0})
    return [part for part in parts if part["params"]]


def _learning(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _built(value: Any) -> Any:
    return value.build() if isinstance(value, AdaptiveTriggerConfig) else value


def fuses(net: nn.Module) -> bool:
    """Whether torch updates the network's weights in one kernel; it does on processors and CUDA.

    Not with channels last: gradients of a 1x1 kernel have other strides then than it, which these kernels refuse.

    On one core an update of the 1.6 million weights of acdc_cpu took 3.6 ms in place of 11.5 by AdamW, and 2.2 in place
    of 5.9 by SGD.
    """
    return all(
        value.device.type in ("cpu", "cuda") and value.is_floating_point() and value.is_contiguous()
        for value in net.parameters()
    )
