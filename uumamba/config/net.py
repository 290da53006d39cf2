"""Networks of a run: their patch size, a cascade, and MONAI's baselines."""

from collections.abc import Callable, Mapping, Sequence
from math import lcm
from typing import Any, cast

import torch
from torch import Tensor, nn

from uumamba.config.bind import Part, declare, load_constructor, supply
from uumamba.nets import CoarseToFine
from uumamba.nets.stages import Topology
from uumamba.runtime.errors import UsageError, require
from uumamba.runtime.memory_shortage import summarize_error
from uumamba.runtime.options import PositiveInt, SpatialDims, check_options


def build_network(part: Part, *, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> nn.Module:
    """Build a network with random initial weights.

    Args:
        part: of kind ``net``.
        in_channels: channels of the image.
        out_channels: number of classes, including the background.
        patch_size: spatial size of the images.
    """
    size = tuple(patch_size)
    made = supply(part.bind(), in_channels=in_channels, out_channels=out_channels, patch_size=size)
    return cast(nn.Module, made)


def find_dimensions(part: Part) -> int | None:
    """Return a network's number of spatial axes; None without such an option."""
    named = part.fine if part.name == "CoarseToFine" else part
    return cast("int | None", named.options.get("spatial_dims"))


def find_divisor(part: Part, *, axes: int) -> tuple[int, ...]:
    """Return the divisor of the patch size along each axis.

    A network declares it by ``find_divisor(options)``, a static method of its class; it is 1 for others.

    Raises:
        UsageError: the options do not fit each other.
    """
    find = getattr(load_constructor(part.kind, part.name), "find_divisor", None)
    return (1,) * axes if find is None else tuple(find(part.options))


def reads_values(part: Part) -> bool:
    """Return whether a constructor fails on the meta device."""
    return bool(getattr(load_constructor(part.kind, part.name), "reads_values", False))


def check_prediction(net: nn.Module, image: Tensor, *, classes: int) -> None:
    """Raise if a network cannot predict an image.

    Args:
        net: on the meta device.
        image: on the meta device. A network that needs its values is not checked.
        classes: number of classes, including the background.

    Raises:
        UsageError: the network fails, or its finest logits have another size than the image.
    """
    size = tuple(image.shape[2:])
    try:
        with torch.no_grad():
            logits = net(image)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        if "meta" in str(error).lower():  # in the messages of torch for operators that need values
            return
        expected = f"options that fit each other and training.patch_size, {size}"
        raise UsageError("", got=summarize_error(error).rstrip("."), expected=expected) from error
    found = tuple((logits if isinstance(logits, Tensor) else logits[0]).shape)
    expected = f"{(len(image), classes, *size)}, the size of training.patch_size"
    require(found == (len(image), classes, *size), "", got=f"logits of the shape {found}", expected=expected)


def _find_cascade_divisor(options: Mapping[str, Any]) -> tuple[int, ...]:
    coarse, fine, factor = options["coarse"], options["fine"], options["factor"]
    require(
        coarse.spatial_dims == fine.spatial_dims == len(factor),
        "factor",
        got=factor,
        expected="one number per axis, with the same spatial_dims of coarse and fine",
    )
    pairs = zip(factor, _divisor_of(coarse, "coarse"), _divisor_of(fine, "fine"), strict=True)
    return tuple(lcm(step * coarse, fine) for step, coarse, fine in pairs)


def _divisor_of(part: Part, section: str) -> tuple[int, ...]:
    try:
        return find_divisor(part, axes=part.spatial_dims)
    except UsageError as error:
        raise error.within(section) from None


@declare(find_divisor=_find_cascade_divisor)
@check_options
def coarse_to_fine(
    in_channels: int,
    out_channels: int,
    patch_size: Sequence[int],
    *,
    coarse: Callable[..., nn.Module],
    fine: Callable[..., nn.Module],
    factor: Sequence[PositiveInt],
) -> CoarseToFine:
    """Make a cascade of a coarse and a fine network.

    Args:
        in_channels: channels of the image.
        out_channels: number of classes, including the background.
        patch_size: spatial size of the images.
        coarse: options of the network that sees the image downsampled by ``factor``.
        fine: options of the network that sees the image and the coarse prediction.
        factor: downsampling, one number per axis.
    """
    small = tuple(size // step for size, step in zip(patch_size, factor, strict=True))
    first = supply(coarse, in_channels=in_channels, out_channels=out_channels, patch_size=small)
    second = supply(fine, in_channels=in_channels + out_channels, out_channels=out_channels, patch_size=patch_size)
    return CoarseToFine(first, second, factor=factor)


@declare(
    find_divisor=lambda options: (2 ** (len(options["blocks_down"]) - 1),) * options["spatial_dims"],
    library="monai.networks.nets.segresnet:SegResNet",
)
@check_options
def segresnet(
    spatial_dims: SpatialDims,
    in_channels: int,
    out_channels: int,
    *,
    init_filters: PositiveInt,
    blocks_down: Sequence[PositiveInt],
    blocks_up: Sequence[PositiveInt],
) -> nn.Module:
    """Make MONAI's SegResNet.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, including the background.
        init_filters: channels of the first level; a multiple of 8, the groups of its norms.
        blocks_down: residual blocks of each encoder level.
        blocks_up: residual blocks of each decoder level.
    """
    from monai.networks.nets.segresnet import SegResNet

    require(blocks_down, "blocks_down", got=blocks_down, expected="1 or more numbers, one per level")
    expected = f"{len(blocks_down) - 1} numbers, one fewer than blocks_down"
    require(len(blocks_up) == len(blocks_down) - 1, "blocks_up", got=blocks_up, expected=expected)
    return cast(
        nn.Module,
        SegResNet(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            init_filters=init_filters,
            blocks_down=tuple(blocks_down),
            blocks_up=tuple(blocks_up),
        ),
    )


@declare(find_divisor=lambda options: Topology.build(**options).required_divisor)
@check_options
def dynunet(
    spatial_dims: SpatialDims,
    in_channels: int,
    out_channels: int,
    *,
    features: Sequence[PositiveInt],
    strides: Sequence[Sequence[PositiveInt]],
    kernel_sizes: Sequence[Sequence[PositiveInt]],
) -> nn.Module:
    """Make MONAI's DynUNet, its re-implementation of nnU-Net's plain network.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, including the background.
        features: channels of each stage, at least three.
        strides: stride of each stage and axis; 1 at the first stage.
        kernel_sizes: kernel of each stage and axis; odd.
    """
    from monai.networks.nets.dynunet import DynUNet

    require(len(features) >= 3, "features", got=features, expected="3 or more stages")
    Topology.build(spatial_dims, features=features, strides=strides, kernel_sizes=kernel_sizes)  # checks the stages
    return cast(
        nn.Module,
        DynUNet(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_sizes,
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=features,
        ),
    )


@declare(
    find_divisor=lambda options: (16,) * options["spatial_dims"],  # edge of a token
    library="monai.networks.nets.unetr:UNETR",
)
@check_options
def unetr(
    spatial_dims: SpatialDims,
    in_channels: int,
    out_channels: int,
    patch_size: Sequence[int],
    *,
    feature_size: PositiveInt,
    hidden_size: PositiveInt,
    mlp_dim: PositiveInt,
    num_heads: PositiveInt,
) -> nn.Module:
    """Make MONAI's UNETR; its position embedding fixes the patch size.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, including the background.
        patch_size: spatial size of the images.
        feature_size: channels of the first decoder level.
        hidden_size: channels of a token.
        mlp_dim: channels between the two linear layers of a block.
        num_heads: heads of attention; they divide ``hidden_size``.
    """
    from monai.networks.nets.unetr import UNETR

    return cast(
        nn.Module,
        UNETR(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            img_size=tuple(patch_size),
            feature_size=feature_size,
            hidden_size=hidden_size,
            mlp_dim=mlp_dim,
            num_heads=num_heads,
        ),
    )


@declare(
    find_divisor=lambda options: (32,) * options["spatial_dims"],
    library="monai.networks.nets.swin_unetr:SwinUNETR",
    reads_values=True,
)
@check_options
def swin_unetr(
    spatial_dims: SpatialDims,
    in_channels: int,
    out_channels: int,
    *,
    feature_size: PositiveInt,
    use_v2: bool,
) -> nn.Module:
    """Make MONAI's SwinUNETR.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: number of classes, including the background.
        feature_size: channels of the first level, a multiple of 12.
        use_v2: a residual convolution at the start of each level.
    """
    from monai.networks.nets.swin_unetr import SwinUNETR

    return cast(
        nn.Module,
        SwinUNETR(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            feature_size=feature_size,
            use_v2=use_v2,
        ),
    )
