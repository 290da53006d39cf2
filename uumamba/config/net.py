"""Networks by name: ours, the control without Mamba, and MONAI's own as baselines."""

from collections.abc import Sequence
from math import lcm, prod
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import nn

from uumamba.config.base import Config

if TYPE_CHECKING:
    from uumamba.nets.residual_unet import ResidualUNet


class ResidualUNetConfig(Config):
    """The arguments that ``UMambaBot``, ``UMambaEnc`` and ``ResEncUNet`` share."""

    name: Literal["UMambaBot", "UMambaEnc", "ResEncUNet"]
    spatial_dims: Literal[2, 3]
    features: tuple[PositiveInt, ...] = Field(min_length=2)
    strides: tuple[tuple[PositiveInt, ...], ...]
    kernel_sizes: tuple[tuple[PositiveInt, ...], ...] | PositiveInt = 3
    encoder_blocks: tuple[PositiveInt, ...] | None = None
    decoder_blocks: tuple[PositiveInt, ...] | None = None
    stem_blocks: NonNegativeInt | None = None
    full_resolution_skip: bool | None = None
    deep_supervision: bool = True

    @model_validator(mode="after")
    def _stages_agree(self) -> "ResidualUNetConfig":
        if len(self.strides) != len(self.features):
            raise ValueError(f"strides has {len(self.strides)} stages but features has {len(self.features)}")
        if any(len(stride) != self.spatial_dims for stride in self.strides):
            raise ValueError(f"each stride needs {self.spatial_dims} numbers, found {self.strides}")
        if set(self.strides[0]) != {1}:
            raise ValueError(
                f"the first stage keeps full resolution, so strides[0] is all ones, found {self.strides[0]}"
            )
        return self

    def divisor(self) -> tuple[int, ...]:
        """What the patch must be divisible by, an axis."""
        return _product(self.strides)

    def build(self, *, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> "ResidualUNet":
        """The network for this many input channels and classes."""
        from uumamba import nets

        arguments: dict[str, Any] = self.model_dump(exclude={"name"}, exclude_none=True)
        arguments |= {"in_channels": in_channels, "out_channels": out_channels}
        if self.name == "UMambaEnc":
            arguments["patch_size"] = tuple(patch_size)
        made: ResidualUNet = getattr(nets, self.name)(**arguments)
        return made


class CoarseToFineConfig(Config):
    """Two of ours, one on the image averaged by ``factor``, the other on the image and what the first one said."""

    name: Literal["CoarseToFine"]
    coarse: ResidualUNetConfig
    fine: ResidualUNetConfig
    factor: tuple[PositiveInt, ...]

    @model_validator(mode="after")
    def _axes_agree(self) -> "CoarseToFineConfig":
        if not self.coarse.spatial_dims == self.fine.spatial_dims == len(self.factor):
            raise ValueError(f"coarse and fine need one spatial_dims and factor as many numbers, found {self.factor}")
        return self

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.fine.spatial_dims

    def divisor(self) -> tuple[int, ...]:
        """What the patch must be divisible by, an axis."""
        pairs = zip(self.factor, self.coarse.divisor(), self.fine.divisor(), strict=True)
        return tuple(lcm(step * coarse, fine) for step, coarse, fine in pairs)

    def build(self, *, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> nn.Module:
        """The network for this many input channels and classes."""
        from uumamba.nets import CoarseToFine

        small = [size // step for size, step in zip(patch_size, self.factor, strict=True)]
        coarse = self.coarse.build(in_channels=in_channels, out_channels=out_channels, patch_size=small)
        fine = self.fine.build(in_channels=in_channels + out_channels, out_channels=out_channels, patch_size=patch_size)
        return CoarseToFine(coarse, fine, factor=self.factor)


class SegResNetConfig(Config):
    """MONAI's SegResNet."""

    name: Literal["SegResNet"]
    spatial_dims: Literal[2, 3]
    init_filters: PositiveInt = 16
    blocks_down: tuple[PositiveInt, ...] = (1, 2, 2, 4)
    blocks_up: tuple[PositiveInt, ...] = (1, 1, 1)

    def divisor(self) -> tuple[int, ...]:
        """What the patch must be divisible by, an axis."""
        return (2 ** (len(self.blocks_down) - 1),) * self.spatial_dims

    def build(self, *, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> nn.Module:
        """The network for this many input channels and classes."""
        from monai.networks.nets.segresnet import SegResNet

        arguments = self.model_dump(exclude={"name"})
        return SegResNet(in_channels=in_channels, out_channels=out_channels, **arguments)


class DynUNetConfig(Config):
    """MONAI's DynUNet, its re-implementation of nnU-Net's plain network."""

    name: Literal["DynUNet"]
    spatial_dims: Literal[2, 3]
    features: tuple[PositiveInt, ...] = Field(min_length=3)
    strides: tuple[tuple[PositiveInt, ...], ...]
    kernel_sizes: tuple[tuple[PositiveInt, ...], ...]

    @model_validator(mode="after")
    def _stages_agree(self) -> "DynUNetConfig":
        if not len(self.features) == len(self.strides) == len(self.kernel_sizes):
            raise ValueError("features, strides and kernel_sizes need one entry a stage each")
        return self

    def divisor(self) -> tuple[int, ...]:
        """What the patch must be divisible by, an axis."""
        return _product(self.strides)

    def build(self, *, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> nn.Module:
        """The network for this many input channels and classes."""
        from monai.networks.nets.dynunet import DynUNet

        return DynUNet(
            spatial_dims=self.spatial_dims,
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=self.kernel_sizes,
            strides=self.strides,
            upsample_kernel_size=self.strides[1:],
            filters=self.features,
        )


class UNETRConfig(Config):
    """MONAI's UNETR; its position embedding fixes the patch size."""

    name: Literal["UNETR"]
    spatial_dims: Literal[2, 3]
    feature_size: PositiveInt = 16
    hidden_size: PositiveInt = 768
    mlp_dim: PositiveInt = 3072
    num_heads: PositiveInt = 12

    def divisor(self) -> tuple[int, ...]:
        """What the patch must be divisible by, an axis."""
        return (16,) * self.spatial_dims

    def build(self, *, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> nn.Module:
        """The network for this many input channels and classes."""
        from monai.networks.nets.unetr import UNETR

        arguments = self.model_dump(exclude={"name"})
        return UNETR(in_channels=in_channels, out_channels=out_channels, img_size=tuple(patch_size), **arguments)


class SwinUNETRConfig(Config):
    """MONAI's SwinUNETR."""

    name: Literal["SwinUNETR"]
    spatial_dims: Literal[2, 3]
    feature_size: PositiveInt = 24
    use_v2: bool = False

    def divisor(self) -> tuple[int, ...]:
        """What the patch must be divisible by, an axis."""
        return (32,) * self.spatial_dims

    def build(self, *, in_channels: int, out_channels: int, patch_size: Sequence[int]) -> nn.Module:
        """The network for this many input channels and classes."""
        from monai.networks.nets.swin_unetr import SwinUNETR

        arguments = self.model_dump(exclude={"name"})
        return SwinUNETR(in_channels=in_channels, out_channels=out_channels, **arguments)


NetConfig = Annotated[
    ResidualUNetConfig | CoarseToFineConfig | SegResNetConfig | DynUNetConfig | UNETRConfig | SwinUNETRConfig,
    Field(discriminator="name"),
]


def _product(strides: Sequence[Sequence[int]]) -> tuple[int, ...]:
    return tuple(prod(axis) for axis in zip(*strides, strict=True))
