"""Networks of a run: their patch size, a cascade, and MONAI's baselines."""

from collections.abc import Callable, Mapping, Sequence
from math import lcm, prod
from typing import Any, cast

from torch import nn

from uumamba.config.bind import Part, declare, load_constructor, supply
from uumamba.nets import CoarseToFine
from uumamba.runtime.errors import UsageError, require
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


@declare(find_divisor=lambda options: tuple(prod(axis) for axis in zip(*options["strides"], strict=True)))
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
        strides: stride of each stage and axis.
        kernel_sizes: kernel of each stage and axis.
    """
    from monai.networks.nets.dynunet import DynUNet

    require(len(features) >= 3, "features", got=features, expected="3 or more stages")
    for key, value in (("strides", strides), ("kernel_sizes", kernel_sizes)):
        require(len(value) == len(features), key, got=value, expected=f"{len(features)} stages, as in features")
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
