"""Networks from checkpoints of U-Mamba and UU-Mamba."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from uumamba.nets.legacy import LegacyUMambaBot, LegacyUMambaEnc
from uumamba.nets.official_plans import read_plans, select_configuration
from uumamba.nets.official_weights import recognise, remove_duplicates
from uumamba.nets.safe_reading import read_weights_file
from uumamba.nets.umamba import ResEncUNet, UMambaBot, UMambaEnc
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.options import check_options

OfficialNet = UMambaBot | UMambaEnc | ResEncUNet | LegacyUMambaBot | LegacyUMambaEnc
Plans = Mapping[str, Any] | Path | str

_KINDS: Final = {kind.__name__: kind for kind in (UMambaBot, UMambaEnc, ResEncUNet, LegacyUMambaBot, LegacyUMambaEnc)}


@check_options
def load_official(
    path: Path | str,
    plans: Plans | None = None,
    *,
    configuration: str | None = None,
    strides: Sequence[int | Sequence[int]] | None = None,
    patch_size: Sequence[int] | None = None,
) -> OfficialNet:
    """Load a U-Mamba or UU-Mamba checkpoint as a network in eval mode.

    Both layouts are supported: U-Mamba's current layout (``UMambaBot``, ``UMambaEnc``; without Mamba ``ResEncUNet``)
    and its layout before March 2024, also that of UU-Mamba (``LegacyUMambaEnc``, ``LegacyUMambaBot``). Layout, widths,
    kernels and blocks are read from the weights. In the current layout, strides and the patch size (for ``UMambaEnc``)
    are not part of the weights. Both are taken from the arguments, else from ``plans``, else from the plans that
    nnU-Net's trainer stores in the checkpoint. The legacy layout needs only its weights and ignores plans.

    No code in the file runs (``read_weights_file``). The weights become float32. All heads of deep supervision are
    kept, so training can continue after ``net.train()``. The weights must fit the network exactly. The global random
    state does not change.

    Args:
        path: nnU-Net's ``checkpoint_*.pth``, or a state dict in a ``torch.save`` file.
        plans: nnU-Net v2's plans, or the path of their ``plans.json``.
        configuration: name of the configuration in the plans, such as ``3d_fullres``; needed if several fit.
        strides: stride of each stage, as in the constructors.
        patch_size: patch size of the training.

    Raises:
        UsageError: the file is unsafe or damaged, or contains no U-Mamba; plans are missing or do not fit; the weights
            do not fit the network or the patch size. The key contains file and argument.

    Example:
        >>> import tempfile
        >>> from uumamba.nets import UMambaBot
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint_final.pth"
        >>> torch.save({"network_weights": UMambaBot(2, 1, 4, features=(8, 16), strides=(1, 2)).state_dict()}, path)
        >>> load_official(path, strides=(1, 2))(torch.zeros(1, 1, 8, 8)).shape
        torch.Size([1, 4, 8, 8])
    """
    content = read_weights_file(path)
    checkpoint = content if isinstance(content, Mapping) else {}
    try:
        weights = remove_duplicates(checkpoint.get("network_weights", checkpoint.get("state_dict", content)))
        network, found = recognise(weights)
        given = {"strides": strides, "patch_size": patch_size}
        arguments = _complete_arguments(network, found, given, plans, configuration, checkpoint.get("init_args"))
        with torch.device("meta"):
            net: OfficialNet = _KINDS[network](**arguments)
        _check_shapes(net, weights)
    except UsageError as error:
        raise UsageError(f"{path}: {error.key}", got=error.got, expected=error.expected, fix=error.fix) from error
    net.load_state_dict({key: value.to(torch.float32, copy=True) for key, value in weights.items()}, assign=True)
    return net.eval()


def _complete_arguments(
    network: str,
    found: dict[str, Any],
    given: Mapping[str, Sequence[Any] | None],
    plans: Plans | None,
    configuration: str | None,
    trained_with: object,
) -> dict[str, Any]:
    """Return the constructor's arguments from weights, user and plans.

    The weights have priority over the user, the user over the plans.
    """
    if "strides" in found:
        strides, expected = given["strides"], found["strides"]
        if strides is not None:
            full = tuple((each,) * len(expected[0]) if isinstance(each, int) else tuple(each) for each in strides)
            require(
                full == expected, "strides", got=full, expected=f"{expected}, as in the weights", fix="omit strides"
            )
        return found
    needed = ("strides", "patch_size") if network == "UMambaEnc" else ("strides",)
    missing = [name for name in needed if given[name] is None]
    arguments = found | {name: given[name] for name in needed}
    if not missing:
        return arguments
    own = trained_with if isinstance(trained_with, Mapping) else {}
    if plans is None and isinstance(own.get("plans"), Mapping):  # never open a path from the file
        plans = own["plans"]
    if plans is None:
        raise UsageError(
            "plans",
            got=None,
            expected=f"plans with the {' and '.join(missing)} of the {network}",
            fix=f"give {' and '.join(missing)}, or plans.json from the parent folder of fold_0 or fold_all",
        )
    planned = select_configuration(
        read_plans(plans),
        found["kernel_sizes"],
        configuration=configuration,
        trained_configuration=own.get("configuration"),
    )
    for name in missing:
        arguments[name] = planned[name]
        require(
            arguments[name] is not None,
            name,
            got="none in the plans",
            expected=f"the {name} of the training",
            fix=f"give {name} as an argument, or plans that contain the {name}",
        )
    return arguments


def _check_shapes(net: OfficialNet, weights: Mapping[str, Tensor]) -> None:
    """Raise unless names and shapes of weights and network are equal."""
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    for key in {**expected, **found}:
        # The width of a Mamba layer over channels is the number of voxels, so it depends on the patch size.
        at_patch = f" at patch size {net.fixed_patch}" if key.startswith("encoder.mamba_layers") else ""
        require(
            expected.get(key) == found.get(key),
            f"weights.{key}",
            got=found.get(key, "none"),
            expected=f"{expected.get(key, 'no such weight')} in a released {type(net).__name__}{at_patch}",
            fix="give the plans or patch_size of the training" if at_patch else "",
        )
