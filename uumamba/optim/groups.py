"""Arguments of every optimizer: parameter groups, base, engine options."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from uumamba.runtime.errors import require
from uumamba.runtime.options import Positive

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # the first is every batch and every instance norm
Params = Iterable[Any]  # parameters, named parameters or groups
BaseFactory = Callable[..., Optimizer]


class EngineOptions(TypedDict, total=False):
    """Options of every optimizer of uumamba.optim, besides its own arguments.

    Attributes:
        net: the network, bare or wrapped for data-parallel training. Running statistics then count each batch once, and
            each rank perturbs along its own gradient (m-sharpness) and averages only the final gradient.
        scaler: the fp16 gradient scaler. The step scales, unscales, skips and updates; the caller must not.
        max_grad_norm: bound of the final gradient's norm, over all groups together.
        accumulation: with several closures, ``"micro"`` perturbs for each closure and averages the perturbed gradients
            (smaller neighbourhoods of the batch, which usually generalise better; the default), ``"full"`` perturbs
            once along the closures' mean gradient and runs all closures again there.
        perturbation: with several ranks, ``"rank"`` perturbs each rank along its own gradient, and
            ``"global"`` all ranks along the averaged gradient, as one big batch would, for one more all-reduce
            per step. Rules whose state must be the same on every rank are always global.
    """

    net: nn.Module | None
    scaler: torch.amp.GradScaler | None
    max_grad_norm: Positive | None
    accumulation: Literal["micro", "full"]
    perturbation: Literal["rank", "global"]


def make_groups(params: Params) -> list[dict[str, Any]]:
    """Convert parameters, named parameters or groups to new groups."""
    require(
        not isinstance(params, Tensor), "params", got="one tensor", expected="an iterable of parameters or of groups"
    )
    entries = list(params)
    if not entries or isinstance(entries[0], dict):
        return [dict(group) for group in entries]
    return [{"params": entries}]


def make_base(base: BaseFactory, groups: list[dict[str, Any]]) -> Optimizer:
    """Make the base optimizer of the groups.

    Raises:
        UsageError: ``base`` is no callable, or returns no optimizer of these parameters.
    """
    made = base(groups) if callable(base) else base
    require(
        callable(base) and isinstance(made, Optimizer),
        "base",
        got=type(made).__name__,
        expected="a callable from parameters to an optimizer",
        fix="pass a callable such as partial(torch.optim.SGD, lr=0.1)",
    )
    require(
        _list_ids(made.param_groups) == _list_ids(groups),
        "base",
        got="an optimizer of other parameters",
        expected="an optimizer of the parameters in its argument",
    )
    return made


def check_groups(groups: Sequence[dict[str, Any]]) -> None:
    """Raise if a group's radius is negative or not finite."""
    for group in groups:
        rho = group.get("rho", 0.0)
        require(math.isfinite(rho) and rho >= 0, "rho", got=rho, expected="a finite number of at least 0")


def norm_layers_only(net: nn.Module) -> list[dict[str, Any]]:
    """Make two parameter groups, of which only the norm layers are perturbed.

    Both groups are trained, by any optimizer of uumamba.optim. A norm layer is any of torch's batch, synchronised,
    instance, layer, group and RMS norms, and any module whose class is called ``...Norm`` and whose parameters have at
    most one axis. The second group has ``perturb=False``, so the length of a perturbation is over the norm layers only.

    Args:
        net: bare, compiled or wrapped for data-parallel training.

    Raises:
        UsageError: no norm layer has parameters.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.ReLU())
        >>> [len(group["params"]) for group in norm_layers_only(net)]
        [2, 2]

    References:
        Mueller et al., *Normalization Layers Are All That Sharpness-Aware Minimization Needs*, NeurIPS 2023,
        arXiv:2306.04226.
        Differs from the paper: none.
    """
    norms = {param: None for module in net.modules() if _is_norm(module) for param in module.parameters()}
    require(
        norms,
        "net",
        got=type(net).__name__,
        expected="a network with parameters in norm layers",
        fix="perturb all parameters, or give the norm layers affine=True",
    )
    others = [param for param in net.parameters() if param not in norms]
    return [{"params": list(norms)}, {"params": others, "perturb": False}]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, NORMS) or (
        type(module).__name__.endswith("Norm") and all(param.ndim <= 1 for param in module.parameters())
    )


def _list_ids(groups: Sequence[dict[str, Any]]) -> list[int]:
    return [id(param) for group in groups for param in group["params"]]
