"""Optimizers by name: a base of torch, and the sharpness-aware rule around it."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from uumamba.config.base import Config
from uumamba.runtime.errors import require

if TYPE_CHECKING:
    from uumamba.optim import AdaptiveTrigger, OutputBiasForgetting
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
        """Build a callable from parameters to the optimizer; ``fused`` updates all of them in one kernel."""
        from torch.optim import SGD

        return partial(SGD, **self.model_dump(exclude={"name"}), fused=fused or None)


class AdamWConfig(Config):
    """Adam with decoupled weight decay."""

    name: Literal["AdamW"]
    lr: PositiveFloat = 1e-3
    betas: tuple[NonNegativeFloat, NonNegativeFloat] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 1e-2

    def build(self, *, fused: bool = False) -> Callable[..., Optimizer]:
        """Build a callable from parameters to the optimizer; ``fused`` updates all of them in one kernel."""
        from torch.optim import AdamW

        return partial(AdamW, **self.model_dump(exclude={"name"}), fused=fused or None)


BaseConfig = Annotated[SGDConfig | AdamWConfig, Field(discriminator="name")]


class OutputBiasForgettingConfig(Config):
    """Ascent loss that forgets the outputs' bias; see :class:`uumamba.optim.OutputBiasForgetting`."""

    name: Literal["output_bias_forgetting"]
    gamma: float = Field(1.0, ge=0, le=1)
    uniform_probability: float | None = Field(None, gt=0, lt=1)
    always: bool = False
    form: Literal["softmax", "sigmoid"] = "softmax"
    class_mean: bool = False
    ignore_label: NonNegativeInt | None = None

    def build(self) -> "OutputBiasForgetting":
        """Build the function from logits and label to the scalar to climb."""
        from uumamba.optim import OutputBiasForgetting

        return OutputBiasForgetting(**self.model_dump(exclude={"name"}))


AscentConfig = OutputBiasForgettingConfig

WITHOUT_ASCENT = {
    "Plain": "never climbs",
    "MSAM": "climbs along its momentum, before its only pass",
    "StaleSAM": "climbs along the last step's gradient, before its only pass",
    "LookSAM": "descends with the first pass's gradient in most steps",
    "SAGM": "descends with the first pass's gradient too",
}
"""Optimizers that cannot climb another loss, each with the reason."""


class FamilyConfig(Config):
    """Options of every optimizer: its base, gradient clipping, and the loss to climb."""

    name: str
    base: BaseConfig
    max_grad_norm: PositiveFloat | None = 12.0
    ascent: AscentConfig | None = None

    @model_validator(mode="after")
    def _check_ascent(self) -> "FamilyConfig":
        require(
            self.ascent is None or self.name not in WITHOUT_ASCENT,
            "ascent",
            got=self.ascent and self.ascent.name,
            expected=f"nothing, as {self.name} {WITHOUT_ASCENT.get(self.name)}",
            fix="leave ascent out, or take an optimizer with an ascent pass, such as SAM or ASAM",
        )
        return self

    @property
    def needs_logits(self) -> bool:
        """Whether the objective must return logits and label beside the loss."""
        return self.ascent is not None

    def build_ascent(self) -> Callable[[Any], Tensor] | None:
        """Build the function from logits and label to the scalar to climb; None climbs the loss itself."""
        return None if self.ascent is None else self.ascent.build()

    def build(self, net: nn.Module, objective: nn.Module, **engine: Any) -> "SharpnessAware":
        """Build the optimizer of the network's and the objective's parameters."""
        from uumamba import optim

        make: Callable[..., SharpnessAware] = getattr(optim, self.name)
        arguments = {key: _built(value) for key, value in self if key not in ("name", "base", "ascent", "perturb")}
        base = self.base.build(fused=fuses(net))
        groups = parameter_groups(net, objective, perturb=getattr(self, "perturb", "all"))
        return make(groups, base=base, **arguments, **({"net": net} | engine))


class PlainConfig(FamilyConfig):
    """The base optimizer alone."""

    name: Literal["Plain"]


class SharpnessAwareConfig(FamilyConfig):
    """Options of every optimizer that perturbs weights.

    ``perturb`` selects all weights of the network or those of its norm layers (SAM-ON); with several ranks, each climbs
    along its own gradient (``rank``) or all along the averaged one (``global``).
    """

    perturb: Perturbed = "all"
    perturbation: Perturbation = "rank"


class SAMConfig(SharpnessAwareConfig):
    """Sharpness-aware minimisation."""

    name: Literal["SAM"]
    rho: NonNegativeFloat = 0.05


class ASAMConfig(SharpnessAwareConfig):
    """Adaptive (scale-invariant) sharpness-aware minimisation."""

    name: Literal["ASAM"]
    rho: NonNegativeFloat = 0.5
    eta: NonNegativeFloat = 0.01
    normalize_bias: bool = False


class TRAMConfig(SharpnessAwareConfig):
    """Adaptive SAM whose radius is the distance that the network's outputs have moved."""

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
        """Whether the trust region compares logits, or an ascent needs them."""
        return self.ascent is not None or self.trust != "fisher"


class GSAMConfig(SharpnessAwareConfig):
    """SAM plus the surrogate gap; with ``rho_min`` and ``lr_max`` the radius follows the learning rate."""

    name: Literal["GSAM"]
    rho: NonNegativeFloat = 0.05
    alpha: NonNegativeFloat = 0.4
    rho_min: NonNegativeFloat | None = None
    lr_max: PositiveFloat | None = None
    lr_min: NonNegativeFloat = 0.0


class FriendlySAMConfig(SharpnessAwareConfig):
    """SAM that climbs along the batch-specific part of the gradient."""

    name: Literal["FriendlySAM"]
    rho: NonNegativeFloat = 0.05
    sigma: NonNegativeFloat = 1.0
    lam: float = Field(0.9, ge=0, lt=1)


class AdaptiveTriggerConfig(Config):
    """Trigger of LookSAM: climb where the gradient is large for this stage of the training."""

    total_steps: PositiveInt
    start: float = 1.0
    end: float = -1.0
    decay: float = Field(0.9, ge=0, lt=1)

    def build(self) -> "AdaptiveTrigger":
        """Build the trigger."""
        from uumamba.optim import AdaptiveTrigger

        return AdaptiveTrigger(**self.model_dump())


class LookSAMConfig(SharpnessAwareConfig):
    """SAM with a second pass every ``k`` steps, or when the trigger fires."""

    name: Literal["LookSAM"]
    rho: NonNegativeFloat = 0.05
    k: PositiveInt = 5
    alpha: NonNegativeFloat = 0.7
    trigger: AdaptiveTriggerConfig | None = None


class MSAMConfig(SharpnessAwareConfig):
    """SAM along the base's momentum, in one pass."""

    name: Literal["MSAM"]
    rho: NonNegativeFloat = 0.3


class StaleSAMConfig(SharpnessAwareConfig):
    """SAM along the last step's gradient, in one pass."""

    name: Literal["StaleSAM"]
    rho: NonNegativeFloat = 0.05


class SAGMConfig(SharpnessAwareConfig):
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
    """Group the parameters of network and objective for the optimizer.

    The objective's parameters neither decay nor climb, and scales of a quantized network do not decay. With
    ``norm_layers`` the network has two groups, of which the norm layers alone climb. Frozen parameters are left out.

    Raises:
        UsageError: the network has no norm layer with parameters.
    """
    groups: list[dict[str, Any]] = [{"params": _trainable(net.parameters())}]
    if perturb == "norm_layers":
        from uumamba.optim import norm_layers_only

        groups = [group | {"params": _trainable(group["params"])} for group in norm_layers_only(net)]
    groups = _separate_scales(groups, net)
    own = _trainable(objective.parameters())
    if own:
        groups.append({"params": own, "weight_decay": 0.0, "perturb": False})
    return groups


def _separate_scales(groups: list[dict[str, Any]], net: nn.Module) -> list[dict[str, Any]]:
    """Split each group that holds scales of quantizers in two, the second without weight decay."""
    from uumamba.quantization import quantizer_scales

    scales = set(quantizer_scales(net).values())
    if not scales:
        return groups
    parts = []
    for group in groups:
        parts.append(group | {"params": [param for param in group["params"] if param not in scales]})
        parts.append(group | {"params": [param for param in group["params"] if param in scales], "weight_decay": 0.0})
    return [part for part in parts if part["params"]]


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _built(value: Any) -> Any:
    return value.build() if isinstance(value, AdaptiveTriggerConfig) else value


def fuses(net: nn.Module) -> bool:
    """Whether torch can update the network's weights in one fused kernel.

    Only contiguous floating-point weights on CPU or CUDA: with channels last, gradients of a 1x1 kernel have other
    strides than the kernel, which fused updates reject. On one core it takes about a third of the time.
    """
    return all(
        value.device.type in ("cpu", "cuda") and value.is_floating_point() and value.is_contiguous()
        for value in net.parameters()
    )
