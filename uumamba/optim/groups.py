"""Parameter groups that the family and its base share."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


def groups_of(params: Iterable[Any]) -> list[dict[str, Any]]:
    """Parameters, named parameters or groups, as groups; the caller's dictionaries are left as they are."""
    if isinstance(params, Tensor):
        raise TypeError("params must be an iterable of parameters or of groups, got one tensor; pass [tensor]")
    entries = list(params)
    if not entries or isinstance(entries[0], dict):
        return [dict(group) for group in entries]
    return [{"params": entries}]


def make_base(base: Callable[..., Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    """The optimizer that ``base`` makes of the groups.

    Raises:
        TypeError: ``base`` is no such callable.
        ValueError: the optimizer holds other parameters than it was given.
    """
    cure = "pass a callable from parameters to an optimizer, such as partial(torch.optim.SGD, lr=0.1)"
    if not callable(base):
        raise TypeError(f"base must make an optimizer, got a {type(base).__name__}; {cure}")
    made = base(groups)
    if not isinstance(made, Optimizer):
        raise TypeError(f"base must make an optimizer, it made a {type(made).__name__}; {cure}")
    if _identities(made.param_groups) != _identities(groups):
        raise ValueError(f"base made an optimizer of other parameters than it was given; {cure}")
    return made


def check_groups(groups: Sequence[dict[str, Any]]) -> None:
    """Refuse a radius that is negative or not a number.

    Raises:
        ValueError: the message names the group.
    """
    for index, group in enumerate(groups):
        rho = group.get("rho", 0.0)
        if not (math.isfinite(rho) and rho >= 0):
            raise ValueError(f"rho must be finite and not negative, got {rho} in parameter group {index}")


def _identities(groups: Sequence[dict[str, Any]]) -> list[int]:
    return [id(param) for group in groups for param in group["params"]]
