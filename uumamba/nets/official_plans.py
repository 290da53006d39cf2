"""Strides and patch size from nnU-Net's plans."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.text_files import load_json


def read_plans(plans: Mapping[str, Any] | Path | str) -> Mapping[str, Any]:
    """Return plans as a mapping, or read them from a file.

    Raises:
        UsageError: the file is missing or does not contain plans of nnU-Net v2 as JSON.
    """
    expected, fix = "the plans of a training with nnU-Net v2", "give plans.json of the training"
    content: Any = plans
    if not isinstance(plans, Mapping):
        try:
            content = load_json(plans)
        except (OSError, ValueError) as error:
            raise UsageError("plans", got=f"{plans} ({error})", expected=expected, fix=fix) from error
    if not isinstance(content, Mapping) or not isinstance(content.get("configurations"), Mapping):
        raise UsageError("plans", got="no configurations", expected=expected, fix=fix)
    return content


def select_configuration(
    plans: Mapping[str, Any],
    kernel_sizes: Sequence[Sequence[int]],
    *,
    configuration: str | None = None,
    trained_configuration: str | None = None,
) -> dict[str, Any]:
    """Return ``strides`` and ``patch_size`` of the configuration with the weights' kernels.

    ``patch_size`` is None if the plans do not contain it.

    Args:
        plans: plans of nnU-Net v2, with ``pool_op_kernel_sizes`` or, since 2.3, ``architecture.arch_kwargs.strides``.
        kernel_sizes: kernel of each stage, from the weights.
        configuration: name of the configuration, from the user.
        trained_configuration: its name in the checkpoint; ignored if the plans do not contain it.

    Raises:
        UsageError: no configuration fits, or several different configurations fit.

    Example:
        >>> two_stages = {"pool_op_kernel_sizes": [[1, 1], [2, 2]], "conv_kernel_sizes": [[3, 3], [3, 3]]}
        >>> select_configuration({"configurations": {"2d": two_stages}}, [[3, 3], [3, 3]])["strides"]
        ((1, 1), (2, 2))
    """
    names = list(plans["configurations"])
    if configuration is not None:
        require(configuration in names, "configuration", got=configuration, expected=f"one of {', '.join(names)}")
    chosen = configuration or (trained_configuration if trained_configuration in names else None)
    candidates = {name: _read_configuration(plans["configurations"], name) for name in ([chosen] if chosen else names)}
    wanted = tuple(tuple(kernel) for kernel in kernel_sizes)
    fitting = {name: each for name, each in candidates.items() if each is not None and each["kernel_sizes"] == wanted}
    require(
        fitting,
        "plans",
        got=f"other kernels in {', '.join(candidates)}",
        expected=f"the kernels of the weights, {wanted}",
        fix="give the plans and configuration of the training",
    )
    require(
        len({(each["strides"], each["patch_size"]) for each in fitting.values()}) == 1,
        "configuration",
        got=None,
        expected=f"one of {', '.join(fitting)} (all fit the weights)",
    )
    return next(iter(fitting.values()))


def _read_configuration(configurations: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return a configuration's sizes, or None if it describes no network.

    A configuration may contain only preprocessing, for example.
    """
    found = _fill_inherited(configurations, name)
    newer = found.get("architecture", {}).get("arch_kwargs", {})
    strides = newer.get("strides", found.get("pool_op_kernel_sizes"))
    kernels = newer.get("kernel_sizes", found.get("conv_kernel_sizes"))
    if strides is None or kernels is None:
        return None
    patch_size = found.get("patch_size")
    return {
        "strides": tuple(map(tuple, strides)),
        "kernel_sizes": tuple(map(tuple, kernels)),
        "patch_size": None if patch_size is None else tuple(patch_size),
    }


def _fill_inherited(configurations: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a configuration with all entries that it inherits."""
    own: Mapping[str, Any] = configurations[name]
    parent = own.get("inherits_from")
    if not parent:
        return own
    require(
        parent in configurations,
        f"plans.configurations.{name}.inherits_from",
        got=parent,
        expected=f"one of {', '.join(configurations)}",
    )
    return {**_fill_inherited(configurations, parent), **own}
