"""Networks from the checkpoints of U-Mamba and UU-Mamba."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from uumamba.nets.legacy import LegacyUMambaBot, LegacyUMambaEnc
from uumamba.nets.official_plans import planned_for, read_plans
from uumamba.nets.official_weights import Found, recognise, without_duplicates
from uumamba.nets.safe_reading import read_checkpoint
from uumamba.nets.umamba import ResEncUNet, UMambaBot, UMambaEnc
from uumamba.runtime.errors import UsageError

Net = UMambaBot | UMambaEnc | ResEncUNet | LegacyUMambaBot | LegacyUMambaEnc
Plans = Mapping[str, Any] | Path | str

_KINDS: Final = {kind.__name__: kind for kind in (UMambaBot, UMambaEnc, ResEncUNet, LegacyUMambaBot, LegacyUMambaEnc)}
_WHERE_PLANS_ARE = "nnU-Net keeps them as plans.json in the folder above fold_0 or fold_all"


def load_official(
    path: Path | str,
    plans: Plans | None = None,
    *,
    configuration: str | None = None,
    strides: Sequence[int | Sequence[int]] | None = None,
    patch_size: Sequence[int] | None = None,
) -> Net:
    """Rebuild the network of a checkpoint that U-Mamba's or UU-Mamba's code wrote, with its weights, in eval mode.

    Both layouts are known: of U-Mamba since March 2024 (``UMambaBot``, ``UMambaEnc``; without Mamba ``ResEncUNet``),
    and the one before, which UU-Mamba's weights have (``LegacyUMambaEnc``, ``LegacyUMambaBot``). Layout, widths,
    kernels and blocks are read from the weights. Strides are not in weights of the current layout, nor is the patch
    size, to which deep layers of ``UMambaEnc`` are bound: both come from the arguments, else from ``plans``, else from
    the checkpoint, which holds the plans if nnU-Net's trainer wrote it. The older layout needs nothing beside its
    weights, and plans given with it are not read.

    Nothing in the file is run (``read_checkpoint``). The weights become float32, all heads of deep supervision are
    kept, so that training can go on after ``net.train()``, and every weight must find its place. Global random state is
    left alone.

    Args:
        path: nnU-Net's ``checkpoint_*.pth``, or a state dict that ``torch.save`` wrote.
        plans: nnU-Net v2's plans, or the path of their ``plans.json``.
        configuration: name of the configuration in the plans, such as ``3d_fullres``; needed where several fit.
        strides: of each stage, as the constructors take it.
        patch_size: spatial size of the patches that the network was trained with.

    Raises:
        UsageError: the file is unsafe or damaged; it holds no U-Mamba; plans are needed and missing, or do not fit; a
            channel-token stage does not fit the patch size. The sentence names file and cure.

    Example:
        >>> import tempfile
        >>> from uumamba.nets import UMambaBot
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint_final.pth"
        >>> torch.save({"network_weights": UMambaBot(2, 1, 4, features=(8, 16), strides=(1, 2)).state_dict()}, path)
        >>> load_official(path, strides=(1, 2))(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 4, 8, 8])
    """
    content = read_checkpoint(path)
    try:
        weights = without_duplicates(_network_weights(content))
        found = recognise(weights)
        given = {"strides": strides, "patch_size": patch_size}
        trained_with = content.get("init_args") if isinstance(content, Mapping) else None
        arguments = _complete(found, given, plans, configuration, trained_with)
        with torch.device("meta"):
            net: Net = _KINDS[found.network](**arguments)
        if isinstance(net, UMambaEnc):
            _check_token_widths(net, arguments["patch_size"], weights)
        _check_every_weight_has_a_place(net, weights)
    except ValueError as error:
        raise UsageError(f"{path}: {str(error).rstrip('.')}.") from error
    net.load_state_dict({key: value.to(torch.float32, copy=True) for key, value in weights.items()}, assign=True)
    return net.eval()


def _network_weights(content: object) -> object:
    """The state dict within a checkpoint, or the whole where that is one."""
    if isinstance(content, Mapping):
        for key in ("network_weights", "state_dict"):
            if key in content:
                return content[key]
    return content


def _complete(
    found: Found,
    given: Mapping[str, Sequence[Any] | None],
    plans: Plans | None,
    configuration: str | None,
    trained_with: object,
) -> dict[str, Any]:
    """What the weights say, and what the network needs beyond that."""
    if "strides" in found.arguments:
        _check_given_strides(given["strides"], found.arguments["strides"])
        return found.arguments
    needed = ("strides", "patch_size") if found.network == "UMambaEnc" else ("strides",)
    missing = [name for name in needed if given[name] is None]
    arguments = found.arguments | {name: given[name] for name in needed}
    if not missing:
        return arguments
    own = trained_with if isinstance(trained_with, Mapping) else {}
    own_plans = own.get("plans")
    if plans is None and isinstance(own_plans, Mapping):
        plans = own_plans
    if plans is None:
        names = " and ".join(name.replace("_", " ") for name in missing)
        raise UsageError(
            f"the weights of a {found.network} do not tell its {names}, and the checkpoint holds no plans; give plans= "
            f"({_WHERE_PLANS_ARE}) or {' and '.join(f'{name}=' for name in missing)}."
        )
    planned = planned_for(
        read_plans(plans),
        found.arguments["kernel_sizes"],
        configuration=configuration,
        trained_configuration=own.get("configuration"),
    )
    if planned.patch_size is None and "patch_size" in missing:
        raise UsageError("the plans name no patch size, which a UMambaEnc needs; give patch_size=.")
    return arguments | {name: getattr(planned, name) for name in missing}


def _check_given_strides(given: Sequence[Any] | None, held: tuple[tuple[int, ...], ...]) -> None:
    if given is None:
        return
    full = tuple((each,) * len(held[0]) if isinstance(each, int) else tuple(each) for each in given)
    if full != held:
        raise UsageError(f"the weights have strides {held}, and strides= gives {full}; leave it out.")


def _check_token_widths(net: UMambaEnc, patch_size: Sequence[int], weights: Mapping[str, Tensor]) -> None:
    """A stage with channels as tokens is as wide as its feature map has voxels, which one patch size alone gives."""
    for stage, layer in net.encoder.mamba_layers.items():
        held = weights.get(f"encoder.mamba_layers.{stage}.norm.weight")
        if held is not None and held.numel() != layer.dim:
            size, channels = net.topology.feature_map_sizes(patch_size)[int(stage)], net.topology.features[int(stage)]
            raise UsageError(
                f"stage {stage} does not fit the patch size {tuple(patch_size)}: its Mamba layer is {held.numel()} "
                f"wide, but the width is the smaller of its channels, {channels}, and its feature map's voxels, there "
                f"{'x'.join(map(str, size))} = {prod(size)}; give the plans or the patch_size= that this network was "
                "trained with."
            )


def _check_every_weight_has_a_place(net: Net, weights: Mapping[str, Tensor]) -> None:
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    wrong = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if wrong:
        described = [f"{key} is {found.get(key, 'missing')}, not {expected.get(key, 'known')}" for key in wrong[:3]]
        raise UsageError(
            f"{len(wrong)} of {len(expected)} weights do not fit a {type(net).__name__} as released: "
            f"{'; '.join(described)}."
        )
