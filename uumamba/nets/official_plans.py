"""nnU-Net's plans: strides and patch size, which weights do not hold."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uumamba.runtime.errors import UsageError, require

Sizes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Planned:
    """One configuration of the plans; ``patch_size`` is None where the plans have none."""

    strides: Sizes
    kernel_sizes: Sizes
    patch_size: tuple[int, ...] | None


def read_plans(plans: Mapping[str, Any] | Path | str) -> Mapping[str, Any]:
    """Return plans as a mapping, read from nnU-Net's ``plans.json`` if a path is given.

    Raises:
        UsageError: the file is missing or is not the JSON of nnU-Net v2's plans.
    """
    expected = "the plans.json that nnU-Net v2 trained with"
    content: Any = plans
    if not isinstance(plans, Mapping):
        try:
            content = json.loads(Path(plans).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError("plans", got=plans, expected=f"{expected} ({error})") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("configurations"), Mapping):
        raise UsageError("plans", got="no configurations", expected=expected)
    return content


def select_configuration(
    plans: Mapping[str, Any],
    kernel_sizes: Sequence[Sequence[int]],
    *,
    configuration: str | None = None,
    trained_configuration: str | None = None,
) -> Planned:
    """Return the configuration whose kernels the weights have.

    Args:
        plans: of nnU-Net v2, with ``pool_op_kernel_sizes`` or, since 2.3, ``architecture.arch_kwargs.strides``.
        kernel_sizes: of each stage, from the weights.
        configuration: its name, from the user.
        trained_configuration: its name, from the checkpoint; ignored where these plans do not have it.

    Raises:
        UsageError: no configuration fits, or several that differ.

    Example:
        >>> two_stages = {"pool_op_kernel_sizes": [[1, 1], [2, 2]], "conv_kernel_sizes": [[3, 3], [3, 3]]}
        >>> select_configuration({"configurations": {"2d": two_stages}}, [[3, 3], [3, 3]]).strides
        ((1, 1), (2, 2))
    """
    names = list(plans["configurations"])
    known = configuration is None or configuration in names
    require(known, "configuration", got=configuration, expected=f"one of {', '.join(names)}")
    chosen = configuration or (trained_configuration if trained_configuration in names else None)
    candidates = {name: _read_configuration(plans["configurations"], name) for name in ([chosen] if chosen else names)}
    wanted = tuple(tuple(kernel) for kernel in kernel_sizes)
    fitting = {name: each for name, each in candidates.items() if each is not None and each.kernel_sizes == wanted}
    require(
        fitting,
        "plans",
        got=f"other kernels in {', '.join(candidates)}",
        expected=f"the kernels of the weights, {wanted}",
        fix="give the plans and configuration that this network was trained with",
    )
    same = len({(each.strides, each.patch_size) for each in fitting.values()}) == 1
    require(same, "configuration", got=None, expected=f"one of {', '.join(fitting)}, which all fit these weights")
    return next(iter(fitting.values()))


def _read_configuration(configurations: Mapping[str, Any], name: str) -> Planned | None:
    """Return a configuration, or None where it describes no network (such as preprocessing alone)."""
    found = _fill_inherited(configurations, name)
    newer = found.get("architecture", {}).get("arch_kwargs", {})
    strides = newer.get("strides", found.get("pool_op_kernel_sizes"))
    kernels = newer.get("kernel_sizes", found.get("conv_kernel_sizes"))
    if strides is None or kernels is None:
        return None
    patch_size = found.get("patch_size")
    return Planned(
        strides=tuple(map(tuple, strides)),
        kernel_sizes=tuple(map(tuple, kernels)),
        patch_size=None if patch_size is None else tuple(patch_size),
    )


def _fill_inherited(configurations: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a configuration completed by the one that its ``inherits_from`` names, and so on."""
    known = ", ".join(configurations)
    require(name in configurations, "plans", got=f"inherits_from: {name}", expected=f"one of {known}")
    parent = configurations[name].get("inherits_from")
    return {**(_fill_inherited(configurations, parent) if parent else {}), **configurations[name]}
