"""Optimizers by name: a base of torch and a sharpness-aware rule."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from uumamba import optim
from uumamba.config.base import Config
from uumamba.runtime.errors import require

PerturbedWeights = Literal["all", "norm_layers"]


class BaseConfig(Config):
    """Options of a base optimizer of torch."""

    name: str

    def build(self, *, fused: bool = False) -> Callable[..., Optimizer]:
        """Build a callable from parameters to the optimizer.

        ``fused`` updates all parameters in one kernel.
        """
        make = {"SGD": SGD, "AdamW": AdamW}[self.name]
        return partial(make, **self.model_dump(exclude={"name"}), fused=fused or None)


class SGDConfig(BaseConfig):
    """Stochastic gradient descent with nnU-Net's defaults."""

    name: Literal["SGD"]
    lr: PositiveFloat = 0.01
    momentum: NonNegativeFloat = 0.99
    nesterov: bool = True
    weight_decay: NonNegativeFloat = 3e-5


class AdamWConfig(BaseConfig):
    """Adam with decoupled weight decay."""

    name: Literal["AdamW"]
    lr: PositiveFloat = 1e-3
    betas: tuple[NonNegativeFloat, NonNegativeFloat] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 1e-2


class OutputBiasForgettingConfig(Config):
    """Loss to perturb along; see :class:`uumamba.optim.OutputBiasForgetting`."""

    name: Literal["output_bias_forgetting"]
    gamma: float = Field(1.0, ge=0, le=1)
    uniform_probability: float | None = Field(None, gt=0, lt=1)
    always: bool = False
    form: Literal["softmax", "sigmoid"] = "softmax"
    class_mean: bool = False
    ignore_label: NonNegativeInt | None = None

    def build(self) -> optim.OutputBiasForgetting:
        return optim.OutputBiasForgetting(**self.model_dump(exclude={"name"}))


WITHOUT_ASCENT = ("Plain", "MSAM", "StaleSAM", "LookSAM", "SAGM")
"""Optimizers without an ascent step along the first gradient, or whose update contains that gradient."""


class OptimizerConfig(Config):
    """Options of every optimizer: base, gradient clipping and ascent loss."""

    name: str
    base: SGDConfig | AdamWConfig = Field(discriminator="name")
    max_grad_norm: PositiveFloat | None = 12.0
    ascent: OutputBiasForgettingConfig | None = None

    @model_validator(mode="after")
    def _check_ascent(self) -> "OptimizerConfig":
        require(
            self.ascent is None or self.name not in WITHOUT_ASCENT,
            "ascent",
            got=self.ascent and self.ascent.name,
            expected=f"none with {self.name}",
            fix="leave ascent out, or take an optimizer such as SAM or ASAM",
        )
        return self

    @property
    def needs_logits(self) -> bool:
        """Return whether the objective must return logits and label with the loss."""
        return self.ascent is not None

    def build_ascent(self) -> Callable[[Any], Tensor] | None:
        """Build the ascent loss of logits and label; None without one."""
        return None if self.ascent is None else self.ascent.build()

    def build(self, net: nn.Module, objective: nn.Module, **engine: Any) -> optim.SharpnessAware:
        """Build the optimizer of the network's and the objective's parameters."""
        make: Callable[..., optim.SharpnessAware] = getattr(optim, self.name)
        options = {key: value for key, value in self if key not in ("name", "base", "ascent", "perturb", "trigger")}
        if trigger := getattr(self, "trigger", None):
            options["trigger"] = trigger.build()
        groups = parameter_groups(net, objective, perturb=getattr(self, "perturb", "all"))
        return make(groups, base=self.base.build(fused=can_fuse(net)), **options, **({"net": net} | engine))


class PlainConfig(OptimizerConfig):
    """Base optimizer without perturbation."""

    name: Literal["Plain"]


class SharpnessAwareConfig(OptimizerConfig):
    """Options of every optimizer that perturbs weights.

    ``perturb`` selects all weights of the network or only the weights of its norm layers (SAM-ON). With several ranks,
    each rank perturbs along its own gradient (``rank``) or all ranks along the averaged gradient (``global``).
    """

    perturb: PerturbedWeights = "all"
    perturbation: Literal["rank", "global"] = "rank"


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
    """Adaptive SAM whose radius is the divergence of the network's outputs."""

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
        return self.ascent is not None or self.trust != "fisher"


class GSAMConfig(SharpnessAwareConfig):
    """SAM that also minimises the surrogate gap.

    With ``rho_min`` and ``lr_max`` the radius follows the learning rate.
    """

    name: Literal["GSAM"]
    rho: NonNegativeFloat = 0.05
    alpha: NonNegativeFloat = 0.4
    rho_min: NonNegativeFloat | None = None
    lr_max: PositiveFloat | None = None
    lr_min: NonNegativeFloat = 0.0


class FriendlySAMConfig(SharpnessAwareConfig):
    """SAM along the batch-specific part of the gradient."""

    name: Literal["FriendlySAM"]
    rho: NonNegativeFloat = 0.05
    sigma: NonNegativeFloat = 1.0
    lam: float = Field(0.9, ge=0, lt=1)


class AdaptiveTriggerConfig(Config):
    """Trigger of LookSAM's ascent step; see :class:`uumamba.optim.AdaptiveTrigger`."""

    total_steps: PositiveInt
    start: float = 1.0
    end: float = -1.0
    decay: float = Field(0.9, ge=0, lt=1)

    def build(self) -> optim.AdaptiveTrigger:
        return optim.AdaptiveTrigger(**self.model_dump())


class LookSAMConfig(SharpnessAwareConfig):
    """SAM with a second pass every ``k`` steps or by a trigger."""

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


def parameter_groups(
    net: nn.Module, objective: nn.Module, *, perturb: PerturbedWeights = "all"
) -> list[dict[str, Any]]:
    """Group the parameters of network and objective for the optimizer.

    The objective's parameters are neither decayed nor perturbed, and scales of a quantized network are not decayed.
    With ``norm_layers`` the network has two groups, of which only the norm layers are perturbed. Frozen parameters are
    left out.

    Raises:
        UsageError: the network has no norm layer with parameters.
    """
    groups: list[dict[str, Any]] = [{"params": net.parameters()}]
    if perturb == "norm_layers":
        groups = optim.norm_layers_only(net)
    groups = _separate_scales([group | {"params": _trainable(group["params"])} for group in groups], net)
    own = _trainable(objective.parameters())
    if own:
        groups.append({"params": own, "weight_decay": 0.0, "perturb": False})
    return groups


def _separate_scales(groups: list[dict[str, Any]], net: nn.Module) -> list[dict[str, Any]]:
    """Split each group's quantizer scales into a group without weight decay."""
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


def can_fuse(net: nn.Module) -> bool:
    """Return whether torch can update the network's weights in one fused kernel.

    The weights must be contiguous, of floating point, and on CPU or CUDA: with channels last, gradients of a 1x1 kernel
    have other strides than the kernel, which fused updates reject. On one core the fused update takes a third of the
    time.
    """
    return all(
        value.device.type in ("cpu", "cuda") and value.is_floating_point() and value.is_contiguous()
        for value in net.parameters()
    )
