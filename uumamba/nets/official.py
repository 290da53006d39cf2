"""Networks from checkpoints of U-Mamba and UU-Mamba."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from uumamba.nets.legacy import LegacyUMambaBot, LegacyUMambaEnc
from uumamba.nets.official_plans import read_plans, select_configuration
from uumamba.nets.official_weights import Found, recognise, without_duplicates
from uumamba.nets.safe_reading import read_checkpoint
from uumamba.nets.umamba import ResEncUNet, UMambaBot, UMambaEnc
from uumamba.runtime.errors import UsageError, require

Net = UMambaBot | UMambaEnc | ResEncUNet | LegacyUMambaBot | LegacyUMambaEnc
Plans = Mapping[str, Any] | Path | str

_KINDS: Final = {kind.__name__: kind for kind in (UMambaBot, UMambaEnc, ResEncUNet, LegacyUMambaBot, LegacyUMambaEnc)}


def load_official(
    path: Path | str,
    plans: Plans | None = None,
    *,
    configuration: str | None = None,
    strides: Sequence[int | Sequence[int]] | None = None,
    patch_size: Sequence[int] | None = None,
) -> Net:
    """Return the network of a U-Mamba or UU-Mamba checkpoint, with its weights, in eval mode.

    Both layouts are known: U-Mamba's since March 2024 (``UMambaBot``, ``UMambaEnc``; without Mamba ``ResEncUNet``)
    and the one before, which UU-Mamba's weights have (``LegacyUMambaEnc``, ``LegacyUMambaBot``). Layout, widths,
    kernels and blocks are read from the weights. Weights of the current layout hold neither strides nor the patch size,
    which deep layers of ``UMambaEnc`` need: both come from the arguments, else from ``plans``, else from the
    checkpoint, which holds the plans if nnU-Net's trainer wrote it. The legacy layout needs nothing beside its weights
    and ignores plans.

    Nothing in the file is run (``read_checkpoint``). The weights become float32, all heads of deep supervision are
    kept, so that training can go on after ``net.train()``, and every weight must have a place in the network. Global
    random state does not change.

    Args:
        path: nnU-Net's ``checkpoint_*.pth``, or a state dict that ``torch.save`` wrote.
        plans: nnU-Net v2's plans, or the path of their ``plans.json``.
        configuration: name of the configuration in the plans, such as ``3d_fullres``; needed where several fit.
        strides: of each stage, as the constructors take it.
        patch_size: spatial size of the patches that the network was trained with.

    Raises:
        UsageError: the file is unsafe or damaged; it holds no U-Mamba; plans are needed and missing, or do not fit; the
            weights do not fit the network or the patch size. The key names file and argument.

    Example:
        >>> import tempfile
        >>> from uumamba.nets import UMambaBot
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint_final.pth"
        >>> torch.save({"network_weights": UMambaBot(2, 1, 4, features=(8, 16), strides=(1, 2)).state_dict()}, path)
        >>> load_official(path, strides=(1, 2))(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 4, 8, 8])
    """
    content = read_checkpoint(path)
    given = {"strides": strides, "patch_size": patch_size}
    trained_with = content.get("init_args") if isinstance(content, Mapping) else None
    try:
        weights = without_duplicates(_find_state_dict(content))
        found = recognise(weights)
        arguments = _complete_arguments(found, given, plans, configuration, trained_with)
        with torch.device("meta"):
            net: Net = _KINDS[found.network](**arguments)
        _check_weights(net, weights)
    except UsageError as error:
        raise UsageError(f"{path}: {error.key}", got=error.got, expected=error.expected, fix=error.fix) from error
    net.load_state_dict({key: value.to(torch.float32, copy=True) for key, value in weights.items()}, assign=True)
    return net.eval()


def _find_state_dict(content: object) -> object:
    """Return the state dict within a checkpoint, or the whole where that is one."""
    if isinstance(content, Mapping):
        return content.get("network_weights", content.get("state_dict", content))
    return content


def _complete_arguments(
    found: Found,
    given: Mapping[str, Sequence[Any] | None],
    plans: Plans | None,
    configuration: str | None,
    trained_with: object,
) -> dict[str, Any]:
    """Return the constructor's arguments: those in the weights, then the given ones, then the planned ones."""
    if "strides" in found.arguments:
        _check_given_strides(given["strides"], found.arguments["strides"])
        return found.arguments
    needed = ("strides", "patch_size") if found.network == "UMambaEnc" else ("strides",)
    missing = [name for name in needed if given[name] is None]
    arguments = found.arguments | {name: given[name] for name in needed}
    if not missing:
        return arguments
    own = trained_with if isinstance(trained_with, Mapping) else {}
    if plans is None and isinstance(own.get("plans"), Mapping):  # a path in a foreign file is not opened
        plans = own["plans"]
    if plans is None:
        raise UsageError(
            "plans",
            got=None,
            expected=f"plans with the {' and '.join(missing)} of a {found.network}, which its weights do not hold",
            fix=f"give {' and '.join(missing)}, or plans.json from the folder above fold_0 or fold_all",
        )
    planned = select_configuration(
        read_plans(plans),
        found.arguments["kernel_sizes"],
        configuration=configuration,
        trained_configuration=own.get("configuration"),
    )
    for name in missing:
        arguments[name] = getattr(planned, name)
        require(arguments[name] is not None, name, got="none in the plans", expected=f"the {name} of the training")
    return arguments


def _check_given_strides(given: Sequence[Any] | None, held: tuple[tuple[int, ...], ...]) -> None:
    if given is not None:
        full = tuple((each,) * len(held[0]) if isinstance(each, int) else tuple(each) for each in given)
        require(full == held, "strides", got=full, expected=f"{held}, the strides of the weights", fix="remove strides")


def _check_weights(net: Net, weights: Mapping[str, Tensor]) -> None:
    """Raise unless every weight has a place in the network, and every place a weight."""
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    for key in {**expected, **found}:
        # A Mamba layer over channels is as wide as its feature map has voxels, which the patch size gives.
        at_patch = f" at patch size {net.fixed_patch}" if key.startswith("encoder.mamba_layers") else ""
        require(
            expected.get(key) == found.get(key),
            f"weights.{key}",
            got=found.get(key, "none"),
            expected=f"{expected.get(key, 'no such weight')} in a {type(net).__name__} as released{at_patch}",
            fix="give the plans or patch_size of the training" if at_patch else "",
        )
