"""Arguments of every optimizer: parameter groups, base, engine options."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from uumamba.runtime.errors import require
from uumamba.runtime.options import EXPLAINED, Positive, check_options

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # the first is every batch and every instance norm
Params = Annotated[Iterable[Any], EXPLAINED]  # parameters, named parameters or groups
BaseFactory = Annotated[Callable[..., Optimizer], EXPLAINED]


class EngineOptions(TypedDict, total=False):
    """Options of every optimizer of uumamba.optim, besides its own arguments.

    Attributes:
        net: the network, bare or wrapped for data-parallel training. Each rank then perturbs along its own gradient
            (m-sharpness) and averages only the final gradient. Running statistics count each batch once, with or
            without ``net``: the second pass then watches calls of modules, of which torch warns for a compiled network,
            and which a compiled function hides.
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
    """Convert parameters, named parameters or groups to new groups.

    Raises:
        UsageError: another object, an empty iterable, a parameter twice, or a complex parameter.
    """
    expected = "an iterable of parameters or of groups"
    require(not isinstance(params, Tensor), "params", got="one tensor", expected=expected, fix="write [weight]")
    is_other = isinstance(params, nn.Module | Mapping | str | Optimizer) and not isinstance(params, nn.ParameterList)
    require(
        isinstance(params, Iterable) and not is_other,
        "params",
        got=type(params).__name__,
        expected=expected,
        fix="write net.parameters() as the first argument, and partial(torch.optim.SGD, lr=0.1) as the second",
    )
    entries = list(params)
    require(
        entries,
        "params",
        got="no parameters",
        expected=expected,
        fix="write net.parameters() again, as an iterator is empty after its first use",
    )
    groups = [dict(group) for group in entries] if isinstance(entries[0], dict) else [{"params": entries}]
    for group in groups:
        members = group.get("params", ())
        group["params"] = [members] if isinstance(members, Tensor) else list(members)
    _check_parameters(
        [entry[-1] if isinstance(entry, tuple) else entry for group in groups for entry in group["params"]]
    )
    return groups


def _check_parameters(params: Sequence[Any]) -> None:
    """Raise for a parameter that no optimizer of uumamba.optim can train."""
    seen: set[int] = set()
    for param in params:
        is_tensor = isinstance(param, Tensor)
        require(is_tensor, "params", got=type(param).__name__, expected="parameters", fix="write net.parameters()")
        require(
            id(param) not in seen,
            "params",
            got=f"a parameter of shape {tuple(param.shape)} twice",
            expected="each parameter once, in one group",
            fix="leave it out of the other group: [p for p in net.parameters() if p is not weight]",
        )
        seen.add(id(param))
        require(
            not (param.is_complex() and param.requires_grad),
            "params",
            got=f"a parameter of {param.dtype}",
            expected="real parameters",
            fix="store torch.view_as_real(weight) as the parameter, and use torch.view_as_complex of it",
        )


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
        fix=f"write {_name_factory(made)}",
    )
    require(
        _list_ids(made.param_groups) == _list_ids(groups),
        "base",
        got="an optimizer of other parameters",
        expected="an optimizer of the parameters in its argument",
    )
    step = inspect.signature(made.step).parameters
    is_plain = step.get("closure") is None or step["closure"].default is not inspect.Parameter.empty
    require(
        is_plain and "at_weights" not in step and not hasattr(made, "first_step"),
        "base",
        got=type(made).__name__,
        expected="an optimizer whose step needs no closure and has one pass",
        fix="write partial(torch.optim.SGD, lr=0.1) or partial(torch.optim.AdamW, lr=0.001)",
    )
    return made


def _name_factory(base: Any) -> str:
    """Write the callable that a base should be."""
    if not isinstance(base, Optimizer):
        return "partial(torch.optim.SGD, lr=0.1)"
    return f"partial({type(base).__name__}, lr={base.defaults.get('lr', 0.1)})"


def check_groups(groups: Sequence[dict[str, Any]]) -> None:
    """Raise if a group's radius is negative or not finite."""
    for group in groups:
        rho = group.get("rho", 0.0)
        require(math.isfinite(rho) and rho >= 0, "rho", got=rho, expected="a finite number of at least 0")


def check_names(groups: Sequence[Mapping[str, Any]], known: Iterable[str]) -> None:
    """Raise for an option that is spelled almost like a known one.

    Other unknown options are left alone: schedulers and layer-wise rates store their own.
    """
    by_letters = {_letters(name): name for name in known}
    for group in groups:
        for name in group.keys() - by_letters.values():
            near = get_close_matches(_letters(name), by_letters, n=1, cutoff=0.85)
            require(
                not near or abs(len(near[0]) - len(_letters(name))) > 1,
                f"params: {name}",
                got=group[name],
                expected="an option of a group by its name",
                fix=f"write {by_letters[near[0]]}" if near else "",
            )


def _letters(name: str) -> str:
    return name.lower().replace("_", "")


@check_options
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
