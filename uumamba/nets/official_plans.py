"""What nnU-Net's plans say that weights do not: strides and the patch size."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uumamba.runtime.errors import UsageError

Sizes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Planned:
    """One configuration of the plans; ``patch_size`` is None where it names none."""

    strides: Sizes
    kernel_sizes: Sizes
    patch_size: tuple[int, ...] | None


def read_plans(plans: Mapping[str, Any] | Path | str) -> Mapping[str, Any]:
    """Plans as a mapping, from nnU-Net's ``plans.json`` if a path is given.

    Raises:
        UsageError: the file is missing or is not the JSON of nnU-Net v2's plans.
    """
    if isinstance(plans, Mapping):
        content: Any = plans
    else:
        try:
            content = json.loads(Path(plans).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"plans {plans} cannot be read as JSON ({error}); give nnU-Net's plans.json.") from error
    if not isinstance(content, Mapping) or not isinstance(content.get("configurations"), Mapping):
        raise UsageError("the plans have no configurations; give the plans.json that nnU-Net v2 trained with.")
    return content


def planned_for(
    plans: Mapping[str, Any],
    kernel_sizes: Sequence[Sequence[int]],
    *,
    configuration: str | None = None,
    trained_configuration: str | None = None,
) -> Planned:
    """The configuration whose kernels the weights have.

    Args:
        plans: of nnU-Net v2, with ``pool_op_kernel_sizes`` or, since 2.3, ``architecture.arch_kwargs.strides``.
        kernel_sizes: of each stage, from the weights.
        configuration: its name, as the user says it.
        trained_configuration: its name, as the checkpoint says it; passed over where these plans have none of it.

    Raises:
        UsageError: no configuration fits, or several that differ.

    Example:
        >>> two_stages = {"pool_op_kernel_sizes": [[1, 1], [2, 2]], "conv_kernel_sizes": [[3, 3], [3, 3]]}
        >>> planned_for({"configurations": {"2d": two_stages}}, [[3, 3], [3, 3]]).strides
        ((1, 1), (2, 2))
    """
    names = list(plans["configurations"])
    if configuration is not None and configuration not in names:
        raise UsageError(f"the plans have no configuration {configuration!r}; found {', '.join(names)}.")
    chosen = configuration or (trained_configuration if trained_configuration in names else None)
    candidates = {name: _planned(plans, name) for name in ([chosen] if chosen else names)}
    wanted = tuple(tuple(kernel) for kernel in kernel_sizes)
    fitting = {name: each for name, each in candidates.items() if each is not None and each.kernel_sizes == wanted}
    if not fitting:
        raise UsageError(
            f"the weights have kernels {wanted}, which is not what the plans' {', '.join(candidates)} "
            f"{'has' if chosen else 'have'}; give the plans and configuration that this network was trained with."
        )
    if len({(each.strides, each.patch_size) for each in fitting.values()}) > 1:
        raise UsageError(
            f"several configurations of the plans fit these weights: {', '.join(fitting)}; say with configuration= "
            "which one this network was trained with."
        )
    return next(iter(fitting.values()))


def _planned(plans: Mapping[str, Any], name: str) -> Planned | None:
    """A configuration, or None where it describes no network (as one for preprocessing alone)."""
    found = _inherited(plans["configurations"], name)
    architecture = found.get("architecture")
    newer = architecture.get("arch_kwargs", {}) if isinstance(architecture, Mapping) else {}
    strides = newer.get("strides", found.get("pool_op_kernel_sizes"))
    kernels = newer.get("kernel_sizes", found.get("conv_kernel_sizes"))
    if strides is None or kernels is None:
        return None
    patch_size = found.get("patch_size")
    try:
        return Planned(
            strides=tuple(tuple(map(int, stride)) for stride in strides),
            kernel_sizes=tuple(tuple(map(int, kernel)) for kernel in kernels),
            patch_size=None if patch_size is None else tuple(map(int, patch_size)),
        )
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"configuration {name!r} of the plans should give strides and kernels as lists of whole numbers; found "
            f"{strides} and {kernels}."
        ) from error


def _inherited(configurations: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration completed by the one that its ``inherits_from`` names, and so on."""
    merged: dict[str, Any] = {}
    seen: list[str] = []
    following: Any = name
    while following is not None:
        if following in seen or not isinstance(configurations.get(following), Mapping):
            raise UsageError(f"configuration {name!r} of the plans inherits from {following!r}, which leads nowhere.")
        seen.append(following)
        merged = {**configurations[following], **merged}
        following = configurations[following].get("inherits_from")
    return merged
