"""Optimizers of a run: parameter groups, the base, and the ascent loss."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.optim import SGD, AdamW

from uumamba import optim
from uumamba.config.bind import Part, declare, load_constructor, takes
from uumamba.data.label_scheme import LabelScheme
from uumamba.runtime.options import BelowOne, NonNegative, Positive, check_options

PerturbedWeights = Literal["all", "norm_layers"]


@check_options
@dataclass(frozen=True, kw_only=True)
class PerturbationOptions:
    """Options of a run's optimizer in addition to its constructor's.

    Args:
        ascent: loss to perturb along; None: the training loss.
        perturb: weights to perturb, all of the network or those of its norm layers (SAM-ON).
    """

    ascent: Callable[[Any], Tensor] | None = None
    perturb: PerturbedWeights = "all"


def build_optimizer(
    part: Part, net: nn.Module, objective: nn.Module, *, labels: LabelScheme | None = None, **engine: Any
) -> optim.SharpnessAware:
    """Build the optimizer of the network's and the objective's parameters.

    Args:
        part: of kind ``optim``.
        net: the trained network, on its device.
        objective: its parameters learn as well.
        labels: labels of the data set; None for classes without ignored voxels.
        engine: options that the run supplies, such as ``scaler``.
    """
    perturb = part.options.get("perturb", PerturbationOptions.perturb)
    base = partial(part.base.bind(), fused=can_fuse(net) or None)
    make = part.bind()
    read = {name: value for name, value in describe_outputs(labels).items() if takes(make, name)}
    made = make(parameter_groups(net, objective, perturb=perturb), base=base, **({"net": net} | engine | read))
    return cast(optim.SharpnessAware, made)


def build_ascent(part: Part, labels: LabelScheme | None = None) -> Callable[[Any], Tensor] | None:
    """Build the ascent loss of logits and label; None without one."""
    if part.ascent is None:
        return None
    ignored = {} if labels is None or labels.ignore_label is None else {"ignore_label": labels.ignore_label}
    return cast(Callable[[Any], Tensor], part.ascent.bind()(**ignored))


def describe_outputs(labels: LabelScheme | None) -> dict[str, Any]:
    """Return form of the outputs and label of ignored voxels, as arguments.

    Example:
        >>> describe_outputs(LabelScheme({"tumour": 1}, ignore_value=9))
        {'form': 'softmax', 'ignore_label': 255}
    """
    if labels is None:
        return {}
    return {"form": "sigmoid" if labels.regions else "softmax", "ignore_label": labels.ignore_label}


def needs_logits(part: Part) -> bool:
    """Return whether the objective must return logits and label with the loss."""
    return part.ascent is not None or find_member(part).needs_logits(part.options)


def find_member(part: Part) -> type[optim.SharpnessAware]:
    """Import the optimizer's class."""
    return cast(type[optim.SharpnessAware], load_constructor(part.kind, part.name))


def parameter_groups(
    net: nn.Module, objective: nn.Module, *, perturb: PerturbedWeights = PerturbationOptions.perturb
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


@declare(library="torch.optim:SGD")
@check_options
def sgd(
    params: Any,
    *,
    lr: Positive,
    momentum: BelowOne,
    nesterov: bool,
    weight_decay: NonNegative,
    fused: bool | None = None,
) -> SGD:
    """Make torch's stochastic gradient descent.

    Args:
        params: parameters or groups.
        lr: learning rate; nnU-Net has 0.01.
        momentum: factor of the running sum of gradients; nnU-Net has 0.99.
        nesterov: look ahead by one step of the momentum, as nnU-Net does.
        weight_decay: factor of the weights in the gradient; nnU-Net has 3e-5.
        fused: update all parameters in one kernel.
    """
    return SGD(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=fused)


@declare(library="torch.optim:AdamW")
@check_options
def adamw(
    params: Any,
    *,
    lr: Positive,
    betas: tuple[BelowOne, BelowOne],
    weight_decay: NonNegative,
    fused: bool | None = None,
) -> AdamW:
    """Make torch's Adam with decoupled weight decay.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay of the running means of the gradient and of its square.
        weight_decay: share of the weights, times the learning rate, that a step subtracts.
        fused: update all parameters in one kernel.
    """
    return AdamW(params, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
